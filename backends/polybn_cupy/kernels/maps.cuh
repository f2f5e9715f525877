// What a layer with weights reads: stored values, the maximum over squares of them, and then the sigmoid.
//
// Pooling and the sigmoid belong to the layer that reads their result, so they need no launches and no memory. Maps have
// shape (n, channels, height, width); features are channels of one pixel.
#pragma once

#include "types.cuh"

// Fill an array in shared memory with finish(load(n)); a thread starts several loads before it waits for the first.
template <int AHEAD = 4, class Load, class Finish>
__device__ void fill(float* target, int count, Load load, Finish finish) {
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

    __device__ Index each() const { return Index(values()) * size * size; }

    __device__ float stored(int image, Index place) const {
        if (!images) return x[image * each() + place];
        const Index number = progress[0] + image;
        return float(images[(order ? order[number] : number) * each() + place]) / 255.0f;
    }

    // The place of the first value of a square, and of another one.
    __device__ Index corner(int at, int side) const {
        const int wide = int(width), rows = int(height);
        const int column = at % wide, row = at / wide % rows, channel = at / wide / rows;
        return (Index(channel) * rows + row) * side * wide * side + column * side;
    }

    __device__ Index place(Index corner, int i, int side) const { return corner + Index(i / side) * width * side + i % side; }

    // The largest of a square and its place; of equals, the first.
    __device__ Best largest(int image, int at, int side) const {
        const Index first = corner(at, side);
        Best found = {stored(image, first), first};
#pragma unroll 3
        for (int i = 1; i < side * side; ++i) {
            const Index from = place(first, i, side);
            const float value = stored(image, from);
            if (value > found.value || value != value) found = {value, from};
        }
        return found;
    }

    __device__ float activated(float value) const { return sigmoid ? 1 / (1 + expf(-value)) : value; }

    // A value before the sigmoid.
    __device__ __noinline__ float raw(int image, int at) const {
        return size == 1 ? stored(image, at) : largest(image, at, int(size)).value;
    }

    __device__ float read(int image, int at) const { return activated(raw(image, at)); }

    // Call go(load), where load(image, at) is `raw` without branches, so that a thread can have several loads in flight.
    template <class Go>
    __device__ void with_loads(Go go) const {
        if (size > 2 || (images && size > 1)) {
            go([&](int image, int at) { return raw(image, at); });
        } else if (images) {
            go([&](int image, int at) { return stored(image, at); });
        } else if (size == 2) {
            go([&](int image, int at) {
                const float* square = x + image * each() + corner(at, 2);
                const float* below = square + 2 * width;
                return larger(larger(larger(square[0], square[1]), below[0]), below[1]);
            });
        } else {
            go([&](int image, int at) { return x[image * Index(values()) + at]; });
        }
    }

    // Bring some neighbours to shared memory.
    __device__ void fetch(float* target, int count, int image, int first) const {
        with_loads([&](auto load) {
            fill(target, count, [&](int n) { return load(image, first + n); }, [&](float value) { return activated(value); });
        });
    }

    __device__ static float larger(float best, float value) { return value > best || value != value ? value : best; }

    // Turn the gradient of one value into that of the stored ones.
    __device__ __noinline__ void give(int image, int at, float gradient) const {
        float* target = dx + image * each();
        const int side = int(size);
        Best found = {0, at};
        if (side > 1) {
            found = largest(image, at, side);
            for (int i = 0; i < side * side; ++i) target[place(corner(at, side), i, side)] = 0;
        } else if (sigmoid) {
            found.value = stored(image, at);
        }
        const float y = activated(found.value);
        target[found.place] = sigmoid ? gradient * (y * (1 - y)) : gradient;
    }
};
