// The pages behind memory that was mapped and is touched later: how many there are, and giving them back.
#pragma once

#include <cstddef>

namespace deepinfer {

// Bytes of [data, data + bytes) that memory stands behind. `data` is a page's beginning, as mmap gives it.
size_t resident_bytes(const void* data, size_t bytes);

// Gives the pages of private anonymous memory back to the system; they are zero when they are touched again.
// Returns how many bytes were resident.
size_t drop_pages(void* data, size_t bytes);

}  // namespace deepinfer
