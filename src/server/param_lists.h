// Request parameters that are no single number: lists, maps, and objects. Each of these functions reads one
// field, if it is there, and leaves the first fault in the reader.
#pragma once

#include "server/fields.h"
#include "server/openai.h"

namespace deepinfer::server {

inline constexpr size_t kMaxStops = 4;
inline constexpr size_t kMaxStopBytes = 4096;
inline constexpr size_t kMaxStopIds = 1024;
inline constexpr size_t kMaxBiases = 1024;
inline constexpr size_t kMaxBadWords = 1024;
inline constexpr size_t kMaxBreakers = 64;
inline constexpr size_t kMaxWordBytes = 1024;
inline constexpr size_t kMaxName = 1024;  // bytes of model, cache_salt
inline constexpr size_t kMaxDocuments = 256;

using FieldFunction = void (*)(FieldReader&, const ParseContext&, GenerationRequest&);

void read_model(FieldReader&, const ParseContext&, GenerationRequest&);
void read_seed(FieldReader&, const ParseContext&, GenerationRequest&);
void read_stop(FieldReader&, const ParseContext&, GenerationRequest&);
void read_stop_ids(FieldReader&, const ParseContext&, GenerationRequest&);
void read_logit_bias(FieldReader&, const ParseContext&, GenerationRequest&);
void read_allowed_ids(FieldReader&, const ParseContext&, GenerationRequest&);
void read_bad_words(FieldReader&, const ParseContext&, GenerationRequest&);
void read_dry_breakers(FieldReader&, const ParseContext&, GenerationRequest&);
void read_cache_salt(FieldReader&, const ParseContext&, GenerationRequest&);
void read_request_id(FieldReader&, const ParseContext&, GenerationRequest&);
void read_truncation_side(FieldReader&, const ParseContext&, GenerationRequest&);
void read_stream_options(FieldReader&, const ParseContext&, GenerationRequest&);

// chat_template, chat_template_kwargs, documents, reasoning_effort: what only the template sees.
void read_template_fields(FieldReader& reader, const ParseContext& context, ChatRequest& request);

std::optional<int32_t> token_id(const boost::json::value& value, int vocab_size);
std::string token_range(int vocab_size);

}  // namespace deepinfer::server
