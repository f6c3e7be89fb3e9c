// The Python module `_native`: weights in tiles, pages of latent cache, and a plan that runs steps.
//
// Only pointers and sizes cross over: arrays come as addresses that the caller keeps alive (or as objects that are kept
// here), so the module is tied to no version of PyTorch. The GIL is released while anything is computed.

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.hpp"
#include "memory.hpp"
#include "plan.hpp"

namespace nb = nanobind;
using namespace cueva;

namespace {

const Kernels& kernels_named(const std::string& name) {
    for (const Kernels* table : runnable_kernels())
        if (name == table->name) return *table;
    throw std::invalid_argument("this build or this processor does not have the instruction set " + name);
}

// Equal matrices in one block, in tiles. With `turns` = 2 each holds two of the given shape, their tiles in turns.
class Matrices {
public:
    Matrices(const std::string& isa, int format, int64_t count, int64_t rows, int64_t columns, int64_t turns)
        : kernels_(&kernels_named(isa)), turns_(turns), part_rows_(rows) {
        const Format kind = static_cast<Format>(format);
        const int64_t bytes = kernels_->tile_bytes(kind, columns);
        const int64_t tiles = (rows + kTileRows - 1) / kTileRows * turns;
        block_ = Block(bytes * tiles * count + 64);
        for (int64_t i = 0; i < count; ++i) {
            Matrix m;
            m.data = block_.data() + bytes * tiles * i;
            m.format = kind;
            m.rows = turns == 1 ? rows : tiles * kTileRows;
            m.columns = columns;
            m.tile_bytes = bytes;
            matrices_.push_back(m);
        }
    }
    // Weights as they lie in memory that `owner` keeps: row-major, never copied.
    Matrices(const std::string& isa, int format, int64_t rows, int64_t columns, uintptr_t data, int64_t row_bytes, nb::object owner)
        : kernels_(&kernels_named(isa)), turns_(1), part_rows_(rows), owner_(std::move(owner)) {
        Matrix m;
        m.data = reinterpret_cast<const uint8_t*>(data);
        m.format = static_cast<Format>(format);
        m.rows = rows;
        m.columns = columns;
        m.tile_bytes = row_bytes;
        matrices_.push_back(m);
    }

    // Rows [first_row, first_row + rows) of matrix `index` (of its part, where tiles take turns) from a source that starts
    // with them; `first_row` is a multiple of sixteen. `scale_row` and `scale_column` say where the source lies in the
    // grid of fp8 scales.
    void pack(int64_t index, int64_t part, int64_t first_row, int64_t rows, int source, uintptr_t from, int64_t row_stride,
              int64_t column_stride, uintptr_t scales, int64_t scale_stride, int64_t scale_row, int64_t scale_column,
              int threads) {
        const Matrix& m = matrices_.at(index);
        if (first_row % kTileRows || first_row < 0 || first_row + rows > part_rows_ || part < 0 || part >= turns_)
            throw std::invalid_argument("rows to pack do not fit the matrix");
        uint8_t* to = const_cast<uint8_t*>(m.data) + (first_row / kTileRows * turns_ + part) * m.tile_bytes;
        nb::gil_scoped_release free;
        kernels_->pack(m.format, source, reinterpret_cast<const uint8_t*>(from), row_stride, column_stride, rows, m.columns,
                       reinterpret_cast<const float*>(scales), scale_stride, scale_row, scale_column, to,
                       m.tile_bytes * turns_, threads);
    }
    void set_bias(int64_t index, uintptr_t from) {
        Matrix& m = matrices_.at(index);
        if (turns_ != 1) throw std::invalid_argument("matrices whose tiles take turns have no bias");
        biases_.emplace_back(m.padded_rows() * 4);
        memcpy(biases_.back().data(), reinterpret_cast<const void*>(from), m.rows * 4);
        m.bias = reinterpret_cast<const float*>(biases_.back().data());
    }
    void unpack(int64_t index, uintptr_t out) const {
        nb::gil_scoped_release free;
        kernels_->unpack(matrices_.at(index), reinterpret_cast<float*>(out), matrices_.at(index).columns);
    }
    // Some rows of a matrix as float32; `ids` ascending, so that a tile is widened once.
    void unpack_rows(int64_t index, uintptr_t ids, int64_t count, uintptr_t out) const {
        nb::gil_scoped_release free;
        const Matrix& m = matrices_.at(index);
        const int64_t* id = reinterpret_cast<const int64_t*>(ids);
        std::vector<float> sixteen(kTileRows * m.columns);
        int64_t held = -1;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t tile = id[i] / kTileRows;
            if (id[i] < 0 || id[i] >= m.rows) throw std::invalid_argument("a row outside the matrix");
            if (tile != held) {
                Matrix one = m;
                const bool mapped = m.format == Format::rows_f32 || m.format == Format::rows_bf16;
                one.data += tile * m.tile_bytes * (mapped ? kTileRows : 1);
                one.rows = m.rows - tile * kTileRows < kTileRows ? m.rows - tile * kTileRows : kTileRows;
                kernels_->unpack(one, sixteen.data(), m.columns);
                held = tile;
            }
            memcpy(reinterpret_cast<float*>(out) + i * m.columns, sixteen.data() + id[i] % kTileRows * m.columns,
                   m.columns * 4);
        }
    }
    void linear(int64_t index, uintptr_t x, int64_t rows, bool prefill, uintptr_t out, int threads) const {
        nb::gil_scoped_release free;
        const Matrix& m = matrices_.at(index);
        const Block memory(kernels_->linear_bytes(m, rows, threads));
        kernels_->linear(m, reinterpret_cast<const float*>(x), rows, prefill, reinterpret_cast<float*>(out),
                         memory.data(), threads);
    }

    const Matrix& at(int64_t index) const { return matrices_.at(index); }
    const std::vector<Matrix>& all() const { return matrices_; }
    int64_t bytes() const { return owner_.is_valid() ? 0 : block_.bytes(); }

private:
    const Kernels* kernels_;
    int64_t turns_, part_rows_;
    Block block_;
    nb::object owner_;
    std::vector<Block> biases_;
    std::vector<Matrix> matrices_;
};

// One budget of cache pages. Memory is taken from the system as pages are first written.
class PagePool {
public:
    PagePool(int64_t page_bytes, int64_t pages) : page_bytes_(page_bytes), block_(page_bytes * pages + 64) {
        for (int64_t i = pages; i-- > 0;) free_.push_back(block_.data() + i * page_bytes);
    }
    bool take(int64_t count, std::vector<uint8_t*>& into) {
        const std::lock_guard<std::mutex> guard(mutex_);
        if (static_cast<int64_t>(free_.size()) < count) return false;
        for (; count > 0; --count) {
            into.push_back(free_.back());
            free_.pop_back();
        }
        return true;
    }
    void give(std::vector<uint8_t*>& pages) {
        const std::lock_guard<std::mutex> guard(mutex_);
        for (size_t i = pages.size(); i-- > 0;) free_.push_back(pages[i]);
        pages.clear();
    }
    int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
    int64_t page_bytes() const { return page_bytes_; }

private:
    int64_t page_bytes_;
    Block block_;
    std::vector<uint8_t*> free_;
    std::mutex mutex_;
};

// The pages of one sequence, in the order of its positions.
class Pages {
public:
    explicit Pages(std::shared_ptr<PagePool> pool) : pool_(std::move(pool)) {}
    ~Pages() { release(); }
    bool grow(int64_t positions) {
        const int64_t wanted = (positions + kPageRows - 1) / kPageRows;
        const int64_t missing = wanted - static_cast<int64_t>(pages_.size());
        return missing <= 0 || pool_->take(missing, pages_);
    }
    void release() { pool_->give(pages_); }
    int64_t positions() const { return static_cast<int64_t>(pages_.size()) * kPageRows; }
    uintptr_t address(int64_t page) const { return reinterpret_cast<uintptr_t>(pages_.at(page)); }
    uint8_t* const* table() const { return pages_.data(); }

private:
    std::shared_ptr<PagePool> pool_;
    std::vector<uint8_t*> pages_;
};

// What Python says about a model, turned into the structs that steps read.
class Plan {
public:
    Plan(const std::string& isa, const nb::dict& about) : kernels_(&kernels_named(isa)) {
        model_.width = number(about, "width");
        model_.vocabulary = number(about, "vocabulary");
        model_.norm_eps = real(about, "norm_eps");
        model_.cache_f32 = number(about, "cache_f32") != 0;
        model_.cache_layers = number(about, "cache_layers");
        model_.cache_width = number(about, "cache_width");
        model_.expand_factor = real(about, "expand_factor");
    }

    // Layers of all depths live in one list of stable addresses; a depth takes the last `count` of them.
    void add_layer(const nb::dict& about) {
        Layer layer = {};
        Attention& a = layer.attention;
        a.heads = number(about, "heads"), a.nope = number(about, "nope"), a.rope = number(about, "rope");
        a.value = number(about, "value"), a.latent = number(about, "latent"), a.query_latent = number(about, "query_latent");
        if (a.rope > 512) throw std::invalid_argument("a rotary width above 512 is not supported");
        a.scale = real(about, "scale");
        a.interleave = number(about, "interleave") != 0;
        a.inv_freq = floats(about, "inv_freq");
        a.rope_factor = real(about, "rope_factor");
        a.latent_eps = real(about, "latent_eps");
        a.q_norm = floats(about, "q_norm"), a.kv_norm = floats(about, "kv_norm");
        a.q_a = matrix(about, "q_a"), a.q_b = matrix(about, "q_b"), a.kv_a = matrix(about, "kv_a"), a.o = matrix(about, "o");
        a.k_up = matrices(about, "k_up"), a.v_up = matrices(about, "v_up");
        layer.input_norm = floats(about, "input_norm"), layer.post_norm = floats(about, "post_norm");
        layer.dense = FeedForward{number(about, "inner"), matrix(about, "gate_up"), matrix(about, "up"), matrix(about, "down")};
        layer.routed = number(about, "experts") > 0;
        Router& r = layer.router;
        if (layer.routed) {
            r.experts = number(about, "experts"), r.chosen = number(about, "chosen");
            r.groups = number(about, "groups"), r.groups_kept = number(about, "groups_kept");
            r.group_by_two = number(about, "group_by_two") != 0, r.softmax = number(about, "softmax") != 0;
            r.normalise = number(about, "normalise") != 0, r.scale = real(about, "router_scale");
            r.weight = matrix(about, "router"), r.bias = floats(about, "router_bias");
            experts_.emplace_back();
            const nb::list list = nb::cast<nb::list>(about["expert_matrices"]);
            for (nb::handle one : list) {
                const nb::tuple parts = nb::cast<nb::tuple>(one);  // gate_up, up or None, down, index
                const int64_t index = nb::cast<int64_t>(parts[3]);
                FeedForward f = {};
                f.inner = number(about, "expert_inner");
                f.gate_up = keep(parts[0]).at(index);
                if (!parts[1].is_none()) f.up = keep(parts[1]).at(index);
                f.down = keep(parts[2]).at(index);
                experts_.back().push_back(f);
            }
            layer.experts = experts_.back().data();
        }
        layers_.push_back(layer);
    }

    void finish(const nb::list& depths) {
        int64_t first = 0;
        for (nb::handle one : depths) {
            const nb::dict about = nb::cast<nb::dict>(one);
            Depth depth = {};
            depth.layer_count = number(about, "layers");
            depth.first_cache_layer = first;
            depth.layers = layers_.data() + first;
            first += depth.layer_count;
            depth.final_norm = floats(about, "final_norm");
            depth.embedding.data = reinterpret_cast<const uint8_t*>(nb::cast<uintptr_t>(about["embedding"]));
            depth.embedding.format = static_cast<Format>(number(about, "embedding_format"));
            depth.embedding.row_bytes = number(about, "embedding_row_bytes");
            kept_.push_back(nb::object(about["embedding_owner"]));
            depth.head = matrix(about, "head");
            depth.enorm = floats(about, "enorm"), depth.hnorm = floats(about, "hnorm");
            depth.eh_proj = matrix(about, "eh_proj");
            depths_.push_back(depth);
        }
        // Behind them the last main layer by itself, for measuring what forms of attention cost.
        Depth probe = depths_.at(0);
        probe.layers += probe.layer_count - 1;
        probe.first_cache_layer += probe.layer_count - 1;
        probe.layer_count = 1;
        depths_.push_back(probe);
        model_.depths = depths_.data();
        model_.depth_count = static_cast<int64_t>(depths_.size());
    }

    // segments: (start, stop, held, prefill, pages). Arrays by address; 0 where there is none.
    void step(int64_t depth, const nb::list& segments, int64_t rows, int64_t decode_rows, uintptr_t ids, uintptr_t state,
              uintptr_t out, uintptr_t head_rows, int64_t head_count, nb::object head, uintptr_t logits, uintptr_t routes,
              int threads) {
        std::vector<Segment> list;
        for (nb::handle one : segments) {
            const nb::tuple s = nb::cast<nb::tuple>(one);
            const Pages& pages = nb::cast<const Pages&>(s[4]);
            Segment segment = {nb::cast<int64_t>(s[0]), nb::cast<int64_t>(s[1]), nb::cast<int64_t>(s[2]), pages.table(),
                               nb::cast<bool>(s[3])};
            if (segment.held + segment.stop - segment.start > pages.positions())
                throw std::invalid_argument("a segment is longer than the pages of its cache");
            list.push_back(segment);
        }
        const Matrix* reduced = head.is_none() ? nullptr : &nb::cast<const Matrices&>(head).at(0);
        const Batch batch = {depth, rows, decode_rows, reinterpret_cast<const int32_t*>(ids),
                             reinterpret_cast<const float*>(state), list.data(), static_cast<int64_t>(list.size()),
                             reinterpret_cast<float*>(out), reinterpret_cast<const int32_t*>(head_rows), head_count,
                             reduced, reinterpret_cast<float*>(logits), reinterpret_cast<int32_t*>(routes), out == 0};
        nb::gil_scoped_release free;
        const std::lock_guard<std::mutex> guard(mutex_);
        const int64_t bytes = kernels_->step_bytes(model_, batch, threads);
        kernels_->step(model_, batch, memory_.reserve(bytes), threads);
    }

    // Fill the workspace with NaN: what a step reads it must have written, and a test holds it to that.
    void poison() { if (memory_.bytes()) memset(memory_.data(), 0xff, memory_.bytes()); }
    void set_expand_factor(float factor) { model_.expand_factor = factor; }
    int64_t page_bytes() const { return model_.page_bytes(); }
    const char* isa() const { return kernels_->name; }
    int64_t workspace_bytes() const { return memory_.bytes(); }

private:
    static int64_t number(const nb::dict& about, const char* key) { return nb::cast<int64_t>(about[key]); }
    static float real(const nb::dict& about, const char* key) { return nb::cast<float>(about[key]); }
    // A float32 array given as (address, owner), or None.
    const float* floats(const nb::dict& about, const char* key) {
        const nb::object value = about[key];
        if (value.is_none()) return nullptr;
        const nb::tuple pair = nb::cast<nb::tuple>(value);
        kept_.push_back(nb::object(pair[1]));
        return reinterpret_cast<const float*>(nb::cast<uintptr_t>(pair[0]));
    }
    const Matrices& keep(nb::handle object) {
        kept_.push_back(nb::borrow(object));
        return nb::cast<const Matrices&>(object);
    }
    Matrix matrix(const nb::dict& about, const char* key) {
        const nb::object value = about[key];
        return value.is_none() ? Matrix{} : keep(value).at(0);
    }
    const Matrix* matrices(const nb::dict& about, const char* key) { return keep(about[key]).all().data(); }

    const Kernels* kernels_;
    Model model_ = {};
    std::vector<Layer> layers_;
    std::deque<std::vector<FeedForward>> experts_;
    std::vector<Depth> depths_;
    std::vector<nb::object> kept_;
    Scratch<uint8_t> memory_;
    std::mutex mutex_;
};

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of cueva: weights in tiles, pages of latent cache, plans that run steps.";
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const Kernels* table : runnable_kernels()) names.emplace_back(table->name);
        return names;
    }, "Instruction sets that this build has and this processor runs, the best first.");
    m.def("built", [] {
        std::vector<std::string> names;
        for (const Kernels* table : built_kernels()) names.emplace_back(table->name);
        return names;
    }, "Instruction sets that this build has, the best first.");
    m.def("quantise", [](const std::string& isa, int format, uintptr_t from, int64_t rows, int64_t columns, uintptr_t out,
                         int threads) {
        const Kernels& kernels = kernels_named(isa);
        nb::gil_scoped_release free;
        return kernels.quantise(static_cast<Format>(format), reinterpret_cast<const float*>(from), rows, columns,
                                reinterpret_cast<uint8_t*>(out), threads);
    });
    nb::class_<Matrices>(m, "Matrices")
        .def(nb::init<const std::string&, int, int64_t, int64_t, int64_t, int64_t>(), nb::arg("isa"), nb::arg("format"),
             nb::arg("count"), nb::arg("rows"), nb::arg("columns"), nb::arg("turns") = 1)
        .def(nb::init<const std::string&, int, int64_t, int64_t, uintptr_t, int64_t, nb::object>())
        .def("pack", &Matrices::pack)
        .def("set_bias", &Matrices::set_bias)
        .def("unpack", &Matrices::unpack)
        .def("unpack_rows", &Matrices::unpack_rows)
        .def("linear", &Matrices::linear)
        .def_prop_ro("bytes", &Matrices::bytes);
    nb::class_<PagePool>(m, "PagePool")
        .def(nb::init<int64_t, int64_t>(), nb::arg("page_bytes"), nb::arg("pages"))
        .def_prop_ro("free_pages", &PagePool::free_pages)
        .def_prop_ro("page_bytes", &PagePool::page_bytes);
    nb::class_<Pages>(m, "Pages")
        .def(nb::init<std::shared_ptr<PagePool>>())
        .def("grow", &Pages::grow)
        .def("release", &Pages::release)
        .def("address", &Pages::address)
        .def_prop_ro("positions", &Pages::positions);
    nb::class_<Plan>(m, "Plan")
        .def(nb::init<const std::string&, const nb::dict&>())
        .def("add_layer", &Plan::add_layer)
        .def("finish", &Plan::finish)
        .def("step", &Plan::step, nb::arg("depth"), nb::arg("segments"), nb::arg("rows"), nb::arg("decode_rows"),
             nb::arg("ids"), nb::arg("state"), nb::arg("out"), nb::arg("head_rows"), nb::arg("head_count"),
             nb::arg("head").none(), nb::arg("logits"), nb::arg("routes"), nb::arg("threads"))
        .def("poison", &Plan::poison)
        .def("set_expand_factor", &Plan::set_expand_factor)
        .def_prop_ro("page_bytes", &Plan::page_bytes)
        .def_prop_ro("workspace_bytes", &Plan::workspace_bytes)
        .def_prop_ro("isa", &Plan::isa);
}
