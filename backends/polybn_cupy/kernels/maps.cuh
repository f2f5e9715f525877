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

    __device__ float stored(Index image, Index place) const {
        const Index each = Index(values()) * size * size;
        if (!images) return x[image * each + place];
        const Index number = progress[0] + image;
        return float(images[(order ? order[number] : number) * each + place]) / 255.0f;
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
        Best found = {stored(image, first), first};
        for (int i = 1; i < int(size * size); ++i) {
            const Index from = place(first, i);
            const float value = stored(image, from);
            if (value > found.value || value != value) found = {value, from};
        }
        return found;
    }

    __device__ float activated(float value) const { return sigmoid ? 1 / (1 + expf(-value)) : value; }

    __device__ float read(int image, int at) const {
        return activated(size == 1 ? stored(image, at) : largest(image, at).value);
    }

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
