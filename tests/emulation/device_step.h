// A step's arrays in the device's memory, for tests on the emulation or on a card.
#pragma once

#include <algorithm>
#include <vector>

#include "backend/cuda/device_batch.h"
#include "emulation/cuda_fixture.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer::test {

// Which order threads, blocks and streams take where nothing says otherwise. A card has its own.
inline void set_order([[maybe_unused]] uint64_t seed) {
#ifdef DEEPINFER_EMULATION
  emulation::set_seed(seed);
#endif
}

// Bytes of the device's memory, exactly as many as asked for. Copies wait.
template <class T>
class DeviceArray {
 public:
  DeviceArray(CudaMachine& m, const std::vector<T>& values)
      : m_(m), count_(values.size()), buffer_(m.take(std::max<size_t>(values.size() * sizeof(T), 1))) {
    write(values);
  }

  void write(const std::vector<T>& values) {
    DI_CHECK(values.size() == count_, "{} values for an array of {}", values.size(), count_);
    if (values.empty()) return;
    Buffer host = pinned();
    std::memcpy(host.data(), values.data(), count_ * sizeof(T));
    m_.gpu->copy_in(buffer_.data(), host.data(), count_ * sizeof(T));
    m_.gpu->synchronize();
  }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    if (values.empty()) return values;
    Buffer host = pinned();
    m_.gpu->copy_out(host.data(), buffer_.data(), count_ * sizeof(T));
    m_.gpu->synchronize();
    std::memcpy(values.data(), host.data(), count_ * sizeof(T));
    return values;
  }

  T* data() const { return reinterpret_cast<T*>(buffer_.data()); }
  size_t size() const { return count_; }

 private:
  Buffer pinned() const {
    Result<Buffer> host = m_.gpu->allocate_pinned(count_ * sizeof(T));
    DI_CHECK(host.ok(), "{}", host.error().message);
    return std::move(host).value();
  }

  CudaMachine& m_;
  size_t count_;
  Buffer buffer_;
};

// The arrays of `batch` on the device. Entries of the block tables that no token needs hold what no kernel
// may follow. Bounds may be larger than the step, as in a graph.
struct DeviceStep {
  struct Bounds {
    int32_t max_blocks = 0, max_context = 0;
  };

  DeviceStep(CudaMachine& m, Batch& b) : DeviceStep(m, b, Bounds()) {}
  DeviceStep(CudaMachine& m, Batch& b, Bounds bounds)
      : row_slot(m, b.row_slot),
        row_start(m, b.row_start),
        context_len(m, b.context_len),
        token(m, b.token),
        position(m, b.position),
        token_row(m, rows_of_tokens(b)),
        logit_token(m, with_one(b.logit_token)),
        row_blocks(m, tables(b, std::max(bounds.max_blocks, b.views[0].stride))) {
    device.row_slot = row_slot.data();
    device.row_start = row_start.data();
    device.context_len = context_len.data();
    device.token = token.data();
    device.position = position.data();
    device.token_row = token_row.data();
    device.logit_token = logit_token.data();
    device.row_blocks = row_blocks.data();
    device.max_blocks = std::max(bounds.max_blocks, b.views[0].stride);
    device.group_stride = int64_t{b.step.num_rows} * device.max_blocks;
    while (device.decode_rows < b.step.num_rows && tokens_of(b, device.decode_rows) == 1)
      ++device.decode_rows;
    for (int32_t row = 0; row < b.step.num_rows; ++row)
      device.max_query = std::max(device.max_query, tokens_of(b, row));
    device.max_context = bounds.max_context;
    for (const int32_t p : b.position) device.max_context = std::max(device.max_context, p + 1);
    b.step.device = &device;
  }

  static int32_t tokens_of(const Batch& b, int32_t row) { return b.row_start[row + 1] - b.row_start[row]; }
  static std::vector<int32_t> rows_of_tokens(const Batch& b) {
    std::vector<int32_t> rows;
    for (int32_t row = 0; row < b.step.num_rows; ++row) rows.insert(rows.end(), tokens_of(b, row), row);
    return rows;
  }
  static std::vector<int32_t> with_one(std::vector<int32_t> v) {
    if (v.empty()) v.push_back(0);
    return v;
  }
  static std::vector<int32_t> tables(const Batch& b, int32_t max_blocks) {
    constexpr int32_t kNever = 0x7ff7ff7;
    std::vector<int32_t> all;
    for (const BlockTable& t : b.views) {
      for (int32_t row = 0; row < b.step.num_rows; ++row) {
        const auto first = t.ids.begin() + int64_t{row} * t.stride;
        auto last = first + t.stride;
        while (last != first && *(last - 1) < 0) --last;
        all.insert(all.end(), first, last);
        all.resize(all.size() + max_blocks - (last - first), kNever);
      }
    }
    return all;
  }

  DeviceArray<int32_t> row_slot, row_start, context_len, token, position, token_row, logit_token, row_blocks;
  cuda::DeviceBatch device;
};

}  // namespace deepinfer::test
