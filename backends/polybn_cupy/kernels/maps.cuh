// What a layer with weights reads: stored values, the maximum over squares of them, and then the sigmoid.
//
// Pooling and the sigmoid belong to the layer that reads their result, so they need no launches and no memory. Maps have
// shape (n, channels, height, width); features are channels of one pixel.
#pragma once

#include "types.cuh"

struct Map {
    Index channels, height, width;  // after pooling
    Index size, sigmoid;            // the side of a square; 1 for no pooling
    const float* x;                 // what is stored: (n, channels, height * size, width * size)
    float* dx;                      // its gradient; may be null
    const unsigned char* images;    // in place of x, bytes that mean numbers from 0 to 1
    const Index* order;             // which image comes when; null: as they come
    const Index* progress;          // the number of images that are done

    struct Best {
        float value;
        Index place;
    };

    __device__ int values() const { return int(channels * height * width); }

    // The stored values of an image, as a function of their places.
    template <class Use>
    __device__ auto with_stored(int image, Use use) const {
        const Index each = Index(values()) * size * size;
        if (images) {
            const Index number = progress[0] + image;
            const unsigned char* bytes = images + (order ? order[number] : number) * each;
            return use([bytes](Index place) { return float(bytes[place]) / 255.0f; });
        }
        const float* numbers = x + image * each;
        return use([numbers](Index place) { return numbers[place]; });
    }

    __device__ float stored(int image, Index place) const {
        return with_stored(image, [place](auto load) { return load(place); });
    }

    // The place of the first value of a square.
    __device__ Index corner(int at) const {
        const int wide = int(width), rows = int(height), side = int(size);
        const int column = at % wide, row = at / wide % rows, channel = at / wide / rows;
        return (Index(channel) * rows + row) * side * wide * side + column * side;
    }

    __device__ Index place(Index corner, int i) const {
        const int side = int(size);
        return corner + Index(i / side) * width * side + i % side;
    }

    // The largest of a square and its place; of equals, the first.
    __device__ __noinline__ Best largest(int image, int at) const {
        const Index first = corner(at);
        return with_stored(image, [this, first](auto load) {
            Best found = {load(first), first};
#pragma unroll 3
            for (int i = 1; i < int(size * size); ++i) {
                const Index from = place(first, i);
                const float value = load(from);
                if (value > found.value || value != value) found = {value, from};
            }
            return found;
        });
    }

    __device__ float activated(float value) const { return sigmoid ? 1 / (1 + expf(-value)) : value; }

    // A value before the sigmoid.
    __device__ float raw(int image, int at) const { return size == 1 ? stored(image, at) : largest(image, at).value; }

    __device__ float read(int image, int at) const { return activated(raw(image, at)); }

    // Turn the gradient of one value into that of the stored ones.
    __device__ __noinline__ void give(int image, int at, float gradient) const {
        float* target = dx + Index(image) * values() * size * size;
        Best found = {0, at};
        if (size > 1) {
            found = largest(image, at);
            for (int i = 0; i < int(size * size); ++i) target[place(corner(at), i)] = 0;
        } else if (sigmoid) {
            found.value = stored(image, at);
        }
        const float y = activated(found.value);
        target[found.place] = sigmoid ? gradient * (y * (1 - y)) : gradient;
    }
};

// Fill an array in shared memory with finish(load(n)); a thread starts several loads before it waits for the first.
template <class Load, class Finish>
__device__ void fill(float* target, int count, Load load, Finish finish) {
    constexpr int AHEAD = 4;
    for (int first = threadIdx.x; first < count; first += AHEAD * THREADS) {
        float value[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) value[k] = first + k * THREADS < count ? load(first + k * THREADS) : 0;
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            if (first + k * THREADS < count) target[first + k * THREADS] = finish(value[k]);
        }
    }
}

__device__ inline float unchanged(float value) { return value; }
