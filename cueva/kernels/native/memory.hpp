// Large blocks of memory on huge pages, and scratch that only ever grows. For the module alone: not compiled per
// instruction set.
//
// Reading weights through 4 KiB pages costs half the bandwidth on some machines, so blocks are aligned to 2 MiB and the
// kernel is asked for huge pages before the first touch. Where it has none to give, the block works all the same.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cueva {

constexpr int64_t kHugePage = int64_t{2} << 20;

// A zeroed block. Small ones come from the heap, aligned to a cache line.
class Block {
public:
    Block() = default;
    explicit Block(int64_t bytes) : bytes_(bytes) {
        if (bytes_ <= 0) return;
#if defined(__linux__)
        if (bytes_ >= kHugePage) {
            mapped_ = (bytes_ + 2 * kHugePage - 1) / kHugePage * kHugePage;
            void* base = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (base == MAP_FAILED) throw std::bad_alloc();
            base_ = base;
            const uintptr_t aligned = (reinterpret_cast<uintptr_t>(base) + kHugePage - 1) / kHugePage * kHugePage;
            data_ = reinterpret_cast<uint8_t*>(aligned);
            madvise(data_, bytes_, MADV_HUGEPAGE);
            return;
        }
#endif
        const size_t size = (static_cast<size_t>(bytes_) + 63) / 64 * 64;
        base_ = std::aligned_alloc(64, size);
        if (!base_) throw std::bad_alloc();
        memset(base_, 0, size);
        data_ = static_cast<uint8_t*>(base_);
    }
    ~Block() { release(); }
    Block(Block&& other) noexcept { swap(other); }
    Block& operator=(Block&& other) noexcept {
        swap(other);
        return *this;
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    uint8_t* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

private:
    void swap(Block& other) {
        std::swap(data_, other.data_);
        std::swap(base_, other.base_);
        std::swap(bytes_, other.bytes_);
        std::swap(mapped_, other.mapped_);
    }
    void release() {
        if (!base_) return;
#if defined(__linux__)
        if (mapped_) {
            munmap(base_, mapped_);
            base_ = nullptr;
            return;
        }
#endif
        std::free(base_);
        base_ = nullptr;
    }

    uint8_t* data_ = nullptr;
    void* base_ = nullptr;
    int64_t bytes_ = 0;
    int64_t mapped_ = 0;
};

// Memory of a step that keeps its size from one step to the next. What it held is lost when it grows.
template <class T>
class Scratch {
public:
    T* reserve(int64_t count) {
        if (count * static_cast<int64_t>(sizeof(T)) > block_.bytes()) {
            block_ = Block();
            block_ = Block(count * static_cast<int64_t>(sizeof(T)));
        }
        return data();
    }
    T* data() const { return reinterpret_cast<T*>(block_.data()); }
    int64_t bytes() const { return block_.bytes(); }

private:
    Block block_;
};

}  // namespace cueva
