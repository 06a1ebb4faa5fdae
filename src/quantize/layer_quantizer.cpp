#include "quantize/layer_quantizer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "quantize/awq.h"
#include "quantize/gptq.h"
#include "quantize/pack.h"

namespace deepinfer::quantize {
namespace {

int64_t group_for(const Plan& plan, const Linear& linear) {
  return plan.group == 0 ? linear.cols : plan.group;
}

// From here on the layer computes what readers of the checkpoint will.
void replace(Linear& linear, const QuantizedLinear& quantized) {
  linear.weight = quantized.dequantize();
  linear.bias = quantized.bias;
}

// Which value row each input column of o multiplies: heads that share keys and values read the same ones.
std::vector<int32_t> value_rows(const ModelConfig& c) {
  std::vector<int32_t> rows(c.heads * c.head_dim);
  for (int column = 0; column < c.heads * c.head_dim; ++column)
    rows[column] = column / c.head_dim / (c.heads / c.kv_heads) * c.head_dim + column % c.head_dim;
  return rows;
}

}  // namespace

Result<void> LayerQuantizer::check_stopped() const {
  if (!stopped_ || !stopped_()) return {};
  return make_error(ErrorCode::kCancelled, "quantize: stopped; the same command goes on where it was");
}

Result<std::vector<OutTensor>> LayerQuantizer::run(DecoderLayer layer, Hidden& hidden) {
  done_.clear();
  DI_TRY(check_stopped());
  switch (plan_.options.method) {
    case Method::kGptq:
      DI_TRY(gptq(layer, hidden));
      break;
    case Method::kAwq:
      DI_TRY(awq(layer, hidden));
      break;
    default:
      DI_TRY(round(layer));
  }
  return pack(layer);
}

Result<void> LayerQuantizer::round(DecoderLayer& layer) {
  const bool fp8 = plan_.options.method == Method::kFp8;
  for (Linear* l : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
    DI_TRY(check_stopped());
    const RoundSpec spec{.dtype = fp8 ? DType::kF8E4M3 : DType::kU4,
                         .group = plan_.group,
                         .symmetric = true,
                         .scale_dtype = plan_.dtype};
    done_.push_back({.name = l->name,
                     .coded = round_rows(spec, l->weight.data(), l->rows, l->cols, &pool_),
                     .order = {},
                     .bias = l->bias});
  }
  return {};
}

Result<void> LayerQuantizer::gptq_step(std::vector<Linear*> linears) {
  const GptqOptions options{.group = group_for(plan_, *linears.front()),
                            .act_order = plan_.options.act_order,
                            .scale_dtype = plan_.dtype};
  const InputStatistics statistics = input_statistics(pool_, x_, linears.front()->cols);
  DI_ASSIGN(const GptqInput input, prepare_gptq(pool_, statistics, options));
  for (Linear* l : linears) {
    DI_TRY(check_stopped());
    Linear copy{
        .name = l->name, .rows = l->rows, .cols = l->cols, .weight = std::move(l->weight), .bias = l->bias};
    done_.push_back(quantize_gptq(pool_, input, options, std::move(copy)));
    replace(*l, done_.back());
  }
  return {};
}

Result<void> LayerQuantizer::gptq(DecoderLayer& layer, Hidden& hidden) {
  forward_.normalized(hidden, layer.attention_norm, x_);
  DI_TRY(gptq_step({&layer.q, &layer.k, &layer.v}));
  forward_.attention(hidden, layer, x_);
  DI_TRY(gptq_step({&layer.o}));
  forward_.add_projection(x_, layer.o, hidden);
  forward_.normalized(hidden, layer.mlp_norm, x_);
  DI_TRY(gptq_step({&layer.gate, &layer.up}));
  forward_.activated(hidden, layer, x_);
  DI_TRY(gptq_step({&layer.down}));
  forward_.add_projection(x_, layer.down, hidden);
  return {};
}

// Returns the factors. x_ becomes what the scaled linears multiply.
Result<std::vector<float>> LayerQuantizer::awq_step(std::vector<Linear*> linears,
                                                    const std::vector<int32_t>& shared) {
  const AwqOptions options{.group = group_for(plan_, *linears.front()), .scale_dtype = plan_.dtype};
  const int64_t cols = linears.front()->cols;
  const InputStatistics statistics = input_statistics(pool_, x_, cols);
  DI_TRY(check_stopped());
  const std::vector<const Linear*> all(linears.begin(), linears.end());
  std::vector<float> factors = search_scales(pool_, statistics, all, shared, options);
  DI_TRY(check_stopped());
  const InputStatistics scaled = divided(statistics, factors);
  for (Linear* l : linears) {
    Linear copy{
        .name = l->name, .rows = l->rows, .cols = l->cols, .weight = std::move(l->weight), .bias = l->bias};
    done_.push_back(quantize_awq(pool_, scaled, options, std::move(copy), factors));
    replace(*l, done_.back());
  }
  for (size_t i = 0; i < x_.size(); i += cols)
    for (int64_t j = 0; j < cols; ++j) x_[i + j] /= factors[j];
  return factors;
}

Result<void> LayerQuantizer::awq_norm_step(std::vector<Linear*> linears, Norm& norm) {
  DI_ASSIGN(const std::vector<float> factors, awq_step(std::move(linears), {}));
  for (size_t j = 0; j < factors.size(); ++j) norm.weight[j] /= factors[j];
  return {};
}

// The linear before gives what is divided: its rows, already quantized, get smaller scales.
void LayerQuantizer::awq_divide_before(Linear& before, const std::vector<float>& factors,
                                       const std::vector<int32_t>& shared) {
  std::vector<float> divisors(before.rows, 1.0f);
  for (size_t j = 0; j < factors.size(); ++j) divisors[shared.empty() ? j : shared[j]] = factors[j];
  const auto at =
      std::find_if(done_.begin(), done_.end(), [&](const auto& q) { return q.name == before.name; });
  DI_CHECK(at != done_.end(), "{} is not quantized", before.name);
  at->divide_rows(divisors);
  replace(before, *at);
}

Result<void> LayerQuantizer::awq(DecoderLayer& layer, Hidden& hidden) {
  const std::vector<int32_t> shared = value_rows(plan_.checkpoint.config);
  forward_.normalized(hidden, layer.attention_norm, x_);
  DI_TRY(awq_norm_step({&layer.q, &layer.k, &layer.v}, layer.attention_norm));
  forward_.attention(hidden, layer, x_);
  DI_ASSIGN(const std::vector<float> of_values, awq_step({&layer.o}, shared));
  awq_divide_before(layer.v, of_values, shared);
  forward_.add_projection(x_, layer.o, hidden);
  forward_.normalized(hidden, layer.mlp_norm, x_);
  DI_TRY(awq_norm_step({&layer.gate, &layer.up}, layer.mlp_norm));
  forward_.activated(hidden, layer, x_);
  DI_ASSIGN(const std::vector<float> of_up, awq_step({&layer.down}, {}));
  awq_divide_before(layer.up, of_up, {});
  forward_.add_projection(x_, layer.down, hidden);
  return {};
}

std::vector<OutTensor> LayerQuantizer::pack(const DecoderLayer& layer) const {
  std::vector<OutTensor> out;
  for (const Norm* norm : {&layer.attention_norm, &layer.mlp_norm})
    out.push_back(
        float_tensor(norm->name + ".weight", {std::ssize(norm->weight)}, norm->weight, plan_.dtype));
  for (const QuantizedLinear& q : done_) {
    switch (plan_.options.method) {
      case Method::kAwq:
        pack_awq(q, out);
        break;
      case Method::kGptq:
        pack_gptq(q, out);
        break;
      case Method::kFp8:
        pack_fp8(q, out);
        break;
      case Method::kInt4:
        pack_int4(q, out);
    }
    if (!q.bias.empty())
      out.push_back(float_tensor(q.name + ".bias", {std::ssize(q.bias)}, q.bias, plan_.dtype));
  }
  return out;
}

}  // namespace deepinfer::quantize
