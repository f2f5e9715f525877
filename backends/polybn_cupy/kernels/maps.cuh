// What a layer with weights reads: stored values, the maximum over squares of them, and then the sigmoid.
//
// Pooling and the sigmoid belong to the layer that reads their result, so they need no launches and no memory. Maps have
// shape (n, channels, height, width); features are channels of one pixel.
#pragma once

#include "types.cuh"

// Division by a number that the compiler does not know, in few instructions.
struct Divisor {
    unsigned number, magic;

    Divisor() = default;
    __device__ explicit Divisor(int number) : number(number), magic(0xffffffffu / unsigned(number)) {}

    // The product with the inverse is the quotient, or 1 less.
    __device__ int divide(int n) const {
        const unsigned low = __umulhi(unsigned(n), magic);
        return int(low + (unsigned(n) - low * number >= number));
    }
};

// Call put(n, load(n)) for each n. A thread starts several loads before it waits for the first. A branch around a load would
// end this, so a thread without a number of its own loads the last one.
template <int AHEAD, class Load, class Put>
__device__ void transfer(int count, Load load, Put put) {
    for (int first = threadIdx.x; first < count; first += AHEAD * THREADS) {
        float value[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) value[k] = load(first + k * THREADS < count ? first + k * THREADS : count - 1);
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            if (first + k * THREADS < count) put(first + k * THREADS, value[k]);
        }
    }
}

// A value and its place in an image.
struct Best {
    float value;
    int place;

    // The larger of two values; of equals, the first.
    __device__ void meet(float other, int where) {
        const bool better = other > value || other != other;
        value = better ? other : value, place = better ? where : place;
    }
};

struct Map {
    Index channels, size, sigmoid;  // the side of a square, 1 for no pooling; whether there is a sigmoid
    Divisor height, width;          // after pooling
    const float* x;                 // what is stored: (n, channels, height * size, width * size)
    float *dx, *kept;               // its gradient, and the values that were read, for the pullback; both may be null
    const unsigned char* images;    // in place of x, bytes that mean numbers from 0 to 1
    const Index* order;             // which image comes when; null: as they come
    const Index* progress;          // the number of images that are done

    using Two = Pack<float, 2>;

    __device__ int area() const { return int(height.number * width.number); }

    __device__ int values() const { return int(channels) * area(); }

    __device__ Index each() const { return Index(values()) * size * size; }

    // The bytes of an image.
    __device__ const unsigned char* picture(int image) const {
        const Index number = progress[0] + image;
        return images + (order ? order[number] : number) * each();
    }

    __device__ static float number(unsigned char byte) { return float(byte) / 255.0f; }

    __device__ float stored(int image, int place) const {
        return images ? number(picture(image)[place]) : x[image * each() + place];
    }

    // The place of the first value of a square.
    __device__ int corner(int at, int side) const {
        const int wide = int(width.number), row = width.divide(at);
        return row * (side - 1) * side * wide + at * side;
    }

    // The largest value of a square.
    __device__ __noinline__ Best largest(int image, int at) const {
        const int side = int(size), first = corner(at, side), line = side * int(width.number);
        Best found = {stored(image, first), first};
        for (int i = 0; i < side; ++i) {
            for (int j = i ? 0 : 1; j < side; ++j) found.meet(stored(image, first + i * line + j), first + i * line + j);
        }
        return found;
    }

    // The same for squares of 2 x 2 stored numbers, without branches, so that a thread can have several loads in flight.
    __device__ Best largest_of_four(int image, int at) const {
        const int first = corner(at, 2), below = first + 2 * int(width.number);
        const float* from = x + image * each();
        const Two upper = *reinterpret_cast<const Two*>(from + first), lower = *reinterpret_cast<const Two*>(from + below);
        Best found = {upper.value[0], first};
        found.meet(upper.value[1], first + 1);
        found.meet(lower.value[0], below);
        found.meet(lower.value[1], below + 1);
        return found;
    }

    // The quotient may be wrong in its last bit.
    __device__ float activated(float value) const { return int(sigmoid) ? __fdividef(1, 1 + expf(-value)) : value; }

    // A value before the sigmoid.
    __device__ float raw(int image, int at) const { return size == 1 ? stored(image, at) : largest(image, at).value; }

    __device__ float read(int image, int at) const { return activated(raw(image, at)); }

    // Call go(load), where load(image, at) is `raw` without branches.
    template <class Go>
    __device__ void with_loads(Go go) const {
        if (size > 2 || (images && size > 1)) {
            go([&](int image, int at) { return largest(image, at).value; });
        } else if (images) {
            go([&](int image, int at) { return stored(image, at); });
        } else if (size == 2) {
            go([&](int image, int at) { return largest_of_four(image, at).value; });
        } else {
            go([&](int image, int at) { return x[image * Index(values()) + at]; });
        }
    }

    __device__ float slope(float value) const {
        const float y = activated(value);
        return sigmoid ? y * (1 - y) : 1.0f;
    }

    // Turn the gradients of some neighbours into those of the stored values. All loads come before the first store, and
    // there is no branch around any.
    template <int COUNT>
    __device__ __noinline__ void give(int image, int at, int count, Pack<float, COUNT> gradient) const {
        float* target = dx + image * each();
        if (size == 1) {
            float value[COUNT] = {};
#pragma unroll
            for (int k = 0; k < COUNT; ++k) {
                if (int(sigmoid)) value[k] = stored(image, at + (k < count ? k : 0));
            }
#pragma unroll
            for (int k = 0; k < COUNT; ++k) {
                if (k < count) target[at + k] = gradient.value[k] * slope(value[k]);
            }
        } else if (size == 2 && !images) {
            Best found[COUNT];
#pragma unroll
            for (int k = 0; k < COUNT; ++k) found[k] = largest_of_four(image, at + (k < count ? k : 0));
#pragma unroll
            for (int k = 0; k < COUNT; ++k) {
                if (k >= count) continue;
                const int first = corner(at + k, 2), below = first + 2 * int(width.number), place = found[k].place;
                const float value = gradient.value[k] * slope(found[k].value);
                *reinterpret_cast<Two*>(target + first) = {place == first ? value : 0, place == first + 1 ? value : 0};
                *reinterpret_cast<Two*>(target + below) = {place == below ? value : 0, place == below + 1 ? value : 0};
            }
        } else {
            for (int k = 0; k < count; ++k) give_square(target, at + k, largest(image, at + k), gradient.value[k]);
        }
    }

    __device__ void give_square(float* target, int at, Best found, float gradient) const {
        const int side = int(size), first = corner(at, side), line = side * int(width.number);
        for (int i = 0; i < side; ++i) {
            for (int j = 0; j < side; ++j) target[first + i * line + j] = 0;
        }
        target[found.place] = gradient * slope(found.value);
    }
};
