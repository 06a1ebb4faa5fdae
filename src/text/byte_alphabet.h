// GPT-2's printable alphabet: vocabulary files write each byte as one visible character ("Ġ" is a space).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace deepinfer {

// The bytes that a token's spelling stands for; nothing when a character is not of the alphabet.
std::optional<std::string> bytes_from_alphabet(std::string_view spelling);

std::string bytes_to_alphabet(std::string_view bytes);

}  // namespace deepinfer
