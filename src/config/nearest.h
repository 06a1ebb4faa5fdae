// "Did you mean": the closest of a list of names.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace deepinfer {

// Edits (insert, delete, replace, swap of neighbours) between two words; '-' equals '_', case is ignored.
int edit_distance(std::string_view a, std::string_view b);

// The candidate with the fewest edits, the first of equals; empty when none is close (more than a third of
// the word, at least 2).
std::string_view nearest(std::string_view word, std::span<const std::string_view> candidates);

}  // namespace deepinfer
