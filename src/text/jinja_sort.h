// A stable merge sort that stays inside its bounds whatever the comparison says (nan has no order), and
// passes on what it throws.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace deepinfer::jinja {

template <class T, class Less>
void stable_sort_by(std::vector<T>& items, const Less& less) {
  std::vector<T> merged(items.size());
  for (size_t width = 1; width < items.size(); width *= 2) {
    for (size_t begin = 0; begin < items.size(); begin += 2 * width) {
      const size_t middle = std::min(begin + width, items.size());
      const size_t end = std::min(middle + width, items.size());
      size_t left = begin;
      size_t right = middle;
      for (size_t out = begin; out < end; ++out) {
        const bool take_right = left == middle || (right < end && less(items[right], items[left]));
        merged[out] = std::move(items[take_right ? right++ : left++]);
      }
    }
    std::swap(items, merged);
  }
}

}  // namespace deepinfer::jinja
