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

    // The largest of a square and its place; of equals, the first.
    __device__ Best best(int image, int at) const {
        if (size == 1) return {stored(image, at), at};
        const int wide = int(width), rows = int(height), side = int(size);
        const int column = at % wide, row = at / wide % rows, channel = at / wide / rows;
        const Index corner = (Index(channel) * rows * side + row * side) * wide * side + column * side;
        Best found = {stored(image, corner), corner};
        for (int i = 1; i < side * side; ++i) {
            const Index place = corner + Index(i / side) * wide * side + i % side;
            const float value = stored(image, place);
            if (value > found.value || value != value) found = {value, place};
        }
        return found;
    }

    __device__ float activated(float value) const { return sigmoid ? 1 / (1 + expf(-value)) : value; }

    __device__ float read(int image, int at) const { return activated(best(image, at).value); }

    // Turn the gradient of one value into that of the stored ones.
    __device__ void give(int image, int at, float gradient) const {
        const Index each = Index(values()) * size * size;
        const Best found = size == 1 && !sigmoid ? Best{0, at} : best(image, at);
        const float y = activated(found.value);
        const float given = sigmoid ? gradient * (y * (1 - y)) : gradient;
        if (size > 1) {
            const int wide = int(width), rows = int(height), side = int(size);
            const int column = at % wide, row = at / wide % rows, channel = at / wide / rows;
            const Index corner = (Index(channel) * rows * side + row * side) * wide * side + column * side;
            for (int i = 0; i < side * side; ++i) dx[image * each + corner + Index(i / side) * wide * side + i % side] = 0;
        }
        dx[image * each + found.place] = given;
    }
};
