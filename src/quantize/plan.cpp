#include "quantize/plan.h"

#include <algorithm>
#include <chrono>
#include <system_error>

#include "base/check.h"
#include "base/json_file.h"
#include "base/limits.h"
#include "model/hf_config.h"
#include "quantize/decoder_layer.h"
#include "quantize/gemm.h"

namespace deepinfer::quantize {
namespace {

namespace fs = std::filesystem;

constexpr double kMiB = 1024.0 * 1024.0;

Result<void> check_source(const fs::path& model) {
  std::error_code ec;
  if (fs::is_regular_file(model, ec))
    return make_error(
        ErrorCode::kModel,
        "quantize: {} is a file, expected a Hugging Face folder with F32, F16 or BF16 weights: what "
        "a GGUF file holds is quantized already or made for other programs",
        model.string());
  return {};
}

// kModel when the folder's configuration says that its weights are quantized already.
Result<void> check_unquantized(const std::string& config, const std::string& name) {
  DI_ASSIGN(const boost::json::value value, parse_json(config, name));
  DI_ASSIGN(const JsonObject object, as_object(value, name));
  if (object.find("quantization_config") == nullptr) return {};
  DI_ASSIGN(const auto quantization, object.object("quantization_config"));
  DI_ASSIGN(const auto method, quantization->string("quant_method"));
  return make_error(
      ErrorCode::kModel,
      "quantize: {} has a quantization_config ({}): it is quantized already, expected F32, F16 or "
      "BF16 weights",
      name, method.value_or("no quant_method"));
}

Result<void> check_out(const Options& o) {
  if (o.out.empty() || !o.out.has_filename())
    return make_error(ErrorCode::kConfig,
                      "quantize: --out: got '{}', expected a folder's path without a slash "
                      "at its end",
                      o.out.string());
  std::error_code ec;
  if (!fs::exists(o.out, ec)) return {};
  if (!fs::is_directory(o.out, ec) || !fs::is_empty(o.out, ec) || ec)
    return make_error(
        ErrorCode::kConfig,
        "quantize: --out: {} exists and is not an empty folder: choose another path, or remove it",
        o.out.string());
  return {};
}

std::vector<int64_t> columns_of(const ModelConfig& c) {
  std::vector<int64_t> columns;
  for (const LinearShape& s : linear_shapes(c, 0)) columns.push_back(s.cols);
  std::sort(columns.begin(), columns.end());
  columns.erase(std::unique(columns.begin(), columns.end()), columns.end());
  return columns;
}

Result<int64_t> choose_group(const Options& o, const ModelConfig& c) {
  if (o.method == Method::kFp8) return 0;
  const std::vector<int64_t> columns = columns_of(c);
  const int64_t best = largest_group(columns);
  const std::string shown = fmt::format("{}", fmt::join(columns, ", "));
  for (const LinearShape& s : linear_shapes(c, 0))
    if (s.rows % 8 != 0 || s.cols % 8 != 0)
      return make_error(ErrorCode::kModel,
                        "{}: has the shape [{}, {}], expected multiples of 8: {} packs 8 values "
                        "a word; fp8 would work",
                        s.name, s.rows, s.cols, method_name(o.method));
  if (o.group == -1 && o.method != Method::kAwq) return 0;
  if (o.group == 0) {
    if (best != 0) return best;
    return make_error(ErrorCode::kModel,
                      "quantize: none of the group sizes 128, 64 and 32 divides the columns "
                      "{} of this model; {}fp8 would work",
                      shown, o.method == Method::kAwq ? "" : "--group-size -1 (a whole row) or ");
  }
  if (o.group != 32 && o.group != 64 && o.group != 128)
    return make_error(ErrorCode::kConfig, "quantize: --group-size: got {}, expected 32, 64, 128{}", o.group,
                      o.method == Method::kAwq ? "" : ", or -1 for a whole row");
  for (const int64_t n : columns)
    if (n % o.group != 0)
      return make_error(ErrorCode::kConfig,
                        "quantize: --group-size: {} does not divide {}, one of the columns {} "
                        "of this model{}",
                        o.group, n, shown, best == 0 ? std::string() : fmt::format("; {} does", best));
  return o.group;
}

Result<DType> source_dtype(const Checkpoint& c) {
  const std::string name = linear_shapes(c.config, 0).front().name + ".weight";
  const RawTensor* t = c.weights.find(name);
  if (t == nullptr) {
    DI_TRY(c.weights.get(name, {}));  // says what is wrong
    return DType::kBF16;
  }
  return t->dtype;
}

// Elements of all linears of a layer.
int64_t linear_elems(const ModelConfig& c) {
  int64_t n = 0;
  for (const LinearShape& s : linear_shapes(c, 0)) n += s.rows * s.cols;
  return n;
}

void estimate_bytes(Plan& p) {
  const ModelConfig& c = p.checkpoint.config;
  const int64_t linear = linear_elems(c), float_bytes = row_bytes(p.dtype, 1);
  int64_t all = 0;
  for (const auto& [name, t] : p.checkpoint.weights.tensors)
    all += static_cast<int64_t>(t.bytes) / info(t.dtype).block_bytes * info(t.dtype).block_elems;
  const double bits = p.options.method == Method::kFp8
                          ? 8.0
                          : 4.0 + (p.group == 0 ? 0.0
                                                : (8.0 * static_cast<double>(float_bytes) + 4) /
                                                      static_cast<double>(p.group));
  p.out_bytes = (all - linear * c.layers) * float_bytes +
                static_cast<int64_t>(bits / 8 * static_cast<double>(linear) * c.layers);
  const int64_t tokens = p.samples.length * p.samples.count();
  const int64_t q = int64_t{c.heads} * c.head_dim, widest = std::max<int64_t>({c.hidden, c.ffn, q});
  const int64_t hidden = tokens * c.hidden * 4;
  // Parts and the result exist together for a moment, as do two states between layers.
  p.disk_bytes = 2 * p.out_bytes + 2 * hidden;
  p.memory_bytes = linear * 5;  // in F32 and as bytes
  if (tokens == 0) return;
  const int64_t sample = p.samples.length * (c.hidden + 3 * std::max<int64_t>(q, c.ffn)) * 4;
  p.memory_bytes += hidden + tokens * widest * 4 + 4 * widest * widest * 4 + p.threads * sample +
                    3 * int64_t{c.hidden} * c.ffn * 4;
}

// Multiplications and additions of one layer.
double layer_flops(const Plan& p) {
  const ModelConfig& c = p.checkpoint.config;
  const auto tokens = static_cast<double>(p.samples.length * p.samples.count());
  const auto H = static_cast<double>(c.hidden), F = static_cast<double>(c.ffn),
             Q = static_cast<double>(c.heads) * c.head_dim;
  double flops = 2 * tokens * static_cast<double>(linear_elems(c)) +
                 2 * tokens * static_cast<double>(p.samples.length) * Q;
  for (const double k : {H, Q, H, F}) flops += 1.3 * tokens * k * k;
  for (const LinearShape& s : linear_shapes(c, 0)) {
    const double square =
        static_cast<double>(s.rows) * static_cast<double>(s.cols) * static_cast<double>(s.cols);
    // AWQ tries 40 factors on some of the rows, GPTQ factors the gram matrix and hands errors on.
    const double sampled = std::min<double>(1, 384.0 / static_cast<double>(s.rows));
    flops += p.options.method == Method::kAwq ? 80 * sampled * square : 3 * square;
  }
  return flops;
}

// A short product with all threads.
double flops_per_second(int threads) {
  constexpr int64_t n = 768;
  ThreadPool pool(threads);
  std::vector<float> a(n * n, 1.0f), c(n * n);
  double best = 1;
  for (int i = 0; i < 3; ++i) {
    const auto start = std::chrono::steady_clock::now();
    multiply(pool,
             {.a = row_major(a.data(), n, n), .b = row_major(a.data(), n, n), .c = c.data(), .c_stride = n});
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2.0 * n * n * n / seconds);
  }
  return best;
}

Result<void> check_room(const Plan& p) {
  const int64_t limit = machine_limits().memory_bytes;
  if (p.memory_bytes > limit)
    return make_error(ErrorCode::kMemory,
                      "quantize: needs about {:.0f} MiB of memory, but this machine's limit is {:.0f} MiB{}",
                      static_cast<double>(p.memory_bytes) / kMiB, static_cast<double>(limit) / kMiB,
                      p.samples.count() > 0 ? ": take fewer samples with --samples, or shorter ones" : "");
  fs::path folder = fs::absolute(p.options.out).parent_path();
  std::error_code ec;
  while (!folder.empty() && folder != folder.root_path() && !fs::exists(folder, ec))
    folder = folder.parent_path();
  const fs::space_info space = fs::space(folder, ec);
  if (!ec && space.available < static_cast<uint64_t>(p.disk_bytes))
    return make_error(
        ErrorCode::kModel,
        "quantize: {} has {:.0f} MiB left, expected {:.0f} MiB: {:.0f} MiB for the result, the rest "
        "while it is made",
        folder.string(), static_cast<double>(space.available) / kMiB,
        static_cast<double>(p.disk_bytes) / kMiB, static_cast<double>(p.out_bytes) / kMiB);
  return {};
}

Result<void> check_numbers(const Options& o) {
  if (o.samples < kLeastSamples || o.samples > 100000)
    return make_error(ErrorCode::kConfig, "quantize: --samples: got {}, expected {} to 100000", o.samples,
                      kLeastSamples);
  if (o.sample_tokens < 16 || o.sample_tokens > 131072)
    return make_error(ErrorCode::kConfig, "quantize: --sample-tokens: got {}, expected 16 to 131072",
                      o.sample_tokens);
  if (o.act_order && o.method != Method::kGptq)
    return make_error(ErrorCode::kConfig, "quantize: --act-order: got the method {}, expected gptq",
                      method_name(o.method));
  return {};
}

Result<void> check_model(const Checkpoint& c, const Options& o) {
  if (c.config.arch != "LlamaForCausalLM")
    return make_error(ErrorCode::kModel, "quantize: got the architecture {}, expected LlamaForCausalLM",
                      c.config.arch);
  if (!c.weights.unsupported.empty()) {
    const auto& [name, what] = *c.weights.unsupported.begin();
    return make_error(ErrorCode::kModel, "quantize: {}: {}; expected F32, F16 or BF16", name, what);
  }
  if (needs_calibration(o.method) && o.sample_tokens > c.config.max_position)
    return make_error(ErrorCode::kConfig,
                      "quantize: --sample-tokens: got {}, expected at most {}, the context of "
                      "this model",
                      o.sample_tokens, c.config.max_position);
  return {};
}

}  // namespace

int64_t largest_group(const std::vector<int64_t>& columns) {
  for (const int64_t group : {128, 64, 32})
    if (std::all_of(columns.begin(), columns.end(), [&](int64_t n) { return n % group == 0; })) return group;
  return 0;
}

Result<Plan> make_plan(const Options& options) {
  Plan p{.options = options};
  DI_TRY(check_numbers(options));
  DI_TRY(check_out(options));
  DI_TRY(check_source(options.model));
  const fs::path config = options.model / "config.json";
  std::error_code ec;
  if (fs::exists(config, ec)) {
    DI_ASSIGN(p.config_json, read_file(config, kMaxConfigBytes));
    DI_TRY(check_unquantized(p.config_json, config.string()));
  }
  if (needs_calibration(options.method)) {
    DI_ASSIGN(p.checkpoint, open_checkpoint(options.model));
  } else {
    DI_ASSIGN(p.checkpoint, open_weights(options.model));
  }
  DI_TRY(check_model(p.checkpoint, options));
  DI_ASSIGN(p.group, choose_group(options, p.checkpoint.config));
  DI_ASSIGN(p.dtype, source_dtype(p.checkpoint));
  // Kernels for these two formats are made for F16; the formats of compressed-tensors keep the model's dtype.
  if (needs_calibration(options.method)) p.dtype = DType::kF16;
  p.threads = options.threads > 0 ? options.threads : machine_limits().threads;
  if (needs_calibration(options.method)) {
    if (p.options.calibration.empty()) p.options.calibration = default_calibration();
    DI_ASSIGN(p.samples, read_calibration(*p.checkpoint.tokenizer, {.file = p.options.calibration,
                                                                    .samples = options.samples,
                                                                    .length = options.sample_tokens}));
    const int32_t most = *std::max_element(p.samples.tokens.begin(), p.samples.tokens.end());
    if (most >= p.checkpoint.config.vocab_size)
      return make_error(ErrorCode::kModel, "{}: the tokenizer gives the token {}, but the model has {}",
                        options.model.string(), most, p.checkpoint.config.vocab_size);
  }
  estimate_bytes(p);
  DI_TRY(check_room(p));
  p.flops = layer_flops(p);
  if (p.samples.count() > 0) p.seconds = p.flops * p.checkpoint.config.layers / flops_per_second(p.threads);
  return p;
}

}  // namespace deepinfer::quantize
