// The parts of a Hugging Face tokenizer.json.
#pragma once

#include <boost/json/value.hpp>

#include "deepinfer/result.h"
#include "text/bpe_tokenizer.h"
#include "text/json_fields.h"

namespace deepinfer {

// kModel with the path inside the document, what was found and what is known. Without end ids.
Result<BpeTokenizerParts> read_tokenizer_json(const boost::json::value& document);

Result<Normalizer> read_normalizer(const JsonFields& document);
Result<PreTokenizer> read_pre_tokenizer(const JsonFields& document);
Result<AddedToken> read_added_token(const JsonFields& token, int64_t id);

}  // namespace deepinfer
