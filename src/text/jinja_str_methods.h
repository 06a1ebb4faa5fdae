// The methods of str.
#pragma once

#include "text/jinja_builtins.h"

namespace deepinfer::jinja {

const MethodEntry* find_string_method(std::string_view name);

}  // namespace deepinfer::jinja
