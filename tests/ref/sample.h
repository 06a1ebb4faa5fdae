// Sampling as plain double-precision loops with a full sort: the oracle of tests/ops/sample_test.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ops/params.h"

namespace deepinfer::ref {

// The probability of every token to be drawn; the greedy choice has 1. xtc_hits: what xtc's coin says; unset:
// over both of its sides.
std::vector<double> token_probabilities(std::span<const float> logits, const SampleRow& row,
                                        std::optional<bool> xtc_hits = {});

// Of the raw logits.
std::vector<double> log_softmax(std::span<const float> logits);

// Tokens by falling logit, lower ids first among equals.
std::vector<int32_t> ranking(std::span<const double> logits);

}  // namespace deepinfer::ref
