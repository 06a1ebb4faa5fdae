// <out>.partial: what is finished, so that a stopped run goes on where it was.
#pragma once

#include <string>
#include <vector>

#include "quantize/plan.h"
#include "quantize/tensor_file.h"

namespace deepinfer::quantize {

// Files: settings.json; layer-00000.safetensors and so on; hidden-00000.bin, what enters that layer; out/,
// the result while it is put together. Every file is there complete or not at all.
class Partial {
 public:
  // Takes or makes the folder for this plan. kConfig when it belongs to another plan, or another process
  // works on it.
  static Result<Partial> open(const Plan& plan);
  ~Partial();
  Partial(Partial&& other) noexcept;
  Partial& operator=(Partial&&) = delete;

  int finished_layers() const { return finished_; }
  // What enters the first layer that is not finished; [elems]. Not for layer 0.
  Result<std::vector<float>> read_hidden(size_t elems) const;
  // The next layer; `hidden` enters the one after it (empty: nothing does).
  Result<void> finish_layer(const std::vector<OutTensor>& tensors, const std::vector<float>& hidden);

  std::filesystem::path layer_file(int layer) const;
  std::filesystem::path out_folder() const { return folder_ / "out"; }  // empty at first
  // The out folder becomes the result; the rest goes.
  Result<void> publish(const std::filesystem::path& out);

 private:
  Partial(std::filesystem::path folder, int lock) : folder_(std::move(folder)), lock_(lock) {}
  std::filesystem::path hidden_file(int layer) const;
  void count_finished(const Plan& plan);

  std::filesystem::path folder_;
  int lock_ = -1;  // a file descriptor
  int finished_ = 0;
};

}  // namespace deepinfer::quantize
