#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <string>

#include "base/check.h"

namespace deepinfer {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string parse_error(std::string_view source) {
  const auto parsed = ChatTemplate::parse(source);
  if (parsed) return "parsed";
  EXPECT_EQ(parsed.error().code, ErrorCode::kModel);
  return parsed.error().message;
}

TemplateInput input_with(std::string_view extra) {
  TemplateInput input;
  input.extra = boost::json::parse(extra).as_object();
  return input;
}

Result<RenderedPrompt> render(std::string_view source, const TemplateInput& input = {}) {
  DI_ASSIGN(const ChatTemplate parsed, ChatTemplate::parse(source));
  return parsed.render(input);
}

std::string render_error(std::string_view source, const TemplateInput& input = {}) {
  const auto rendered = render(source, input);
  if (rendered) return "rendered " + rendered->text.substr(0, 100);
  EXPECT_EQ(rendered.error().code, ErrorCode::kInvalidArgument);
  return rendered.error().message;
}

// The text with every trusted range in brackets.
std::string marked(std::string_view source, const TemplateInput& input) {
  const auto rendered = render(source, input);
  if (!rendered) return rendered.error().message;
  std::string out;
  size_t at = 0;
  for (const TextRange& range : rendered->trusted) {
    out += rendered->text.substr(at, range.begin - at);
    out += "[" + rendered->text.substr(range.begin, range.end - range.begin) + "]";
    at = range.end;
  }
  return out + rendered->text.substr(at);
}

TEST(ChatTemplate, SyntaxErrorsNameLineAndColumn) {
  EXPECT_THAT(parse_error("a\nbc {% nope %}"),
              StartsWith("chat template, line 2, column 7: unknown or misplaced tag"));
  EXPECT_THAT(parse_error("{{ a b }}"),
              StartsWith("chat template, line 1, column 6: got 'b', expected '}}'"));
  EXPECT_THAT(parse_error("é {{ 'x }}"),
              StartsWith("chat template, line 1, column 6: string without its end"));
  EXPECT_THAT(parse_error("\n\n  {% if x %}"), HasSubstr("expected {% elif %} or {% else %} or {% endif %}"));
  EXPECT_THAT(parse_error("x\n{{ open"), StartsWith("chat template, line 2, column 3: tag without its end"));
}

TEST(ChatTemplate, WhatTheSubsetLacksIsNamedWithWhatItHas) {
  EXPECT_THAT(parse_error("{% include 'x' %}"),
              HasSubstr("unsupported tag 'include': a chat template stands alone"));
  EXPECT_THAT(parse_error("{{ x | urlize }}"),
              HasSubstr("unsupported filter 'urlize': supported are abs, attr"));
  EXPECT_THAT(parse_error("{{ x | nope }}"), HasSubstr("no filter named 'nope': supported are"));
  EXPECT_THAT(parse_error("{{ x is nope }}"), HasSubstr("no test named 'nope': supported are"));
  EXPECT_THAT(parse_error("{{ lipsum() }}"), HasSubstr("unsupported function 'lipsum'"));
}

TEST(ChatTemplate, RaiseExceptionGivesItsOwnWords) {
  EXPECT_EQ(render_error("{{ raise_exception('Roles must alternate!') }}"), "Roles must alternate!");
}

TEST(ChatTemplate, OtherFailuresSayWhere) {
  EXPECT_EQ(render_error("a\n{{ x.y }}"), "chat template, line 2, column 5: 'x' is undefined");
  EXPECT_EQ(render_error("{{ 'a' + 1 }}"),
            "chat template, line 1, column 8: can only concatenate str (not \"int\") to str");
}

TEST(ChatTemplate, NothingButDataIsReachable) {
  for (const char* source :
       {"{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages.__class__() }}",
        "{{ ''.join.__self__.x }}", "{{ namespace(__class__=1) }}"}) {
    EXPECT_THAT(render_error(source), StartsWith("chat template, line 1")) << source;
  }
}

TEST(ChatTemplate, StepsAreLimited) {
  constexpr const char* kLoop =
      "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a + b %}{% endfor %}{% endfor %}";
  EXPECT_THAT(render_error(kLoop), HasSubstr("took more than its 20000000 steps"));
  constexpr const char* kDoubling =
      "{% set ns = namespace(s='0123456789abcdef') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% "
      "endfor %}";
  EXPECT_THAT(render_error(kDoubling), HasSubstr("a string of more than 64 MiB"));
  EXPECT_THAT(render_error("{% for a in 'ab' * 99999999 %}{{ a }}{% endfor %}"), HasSubstr("more than"));
}

TEST(ChatTemplate, MemoryIsLimited) {
  constexpr const char* kKeep =
      "{% set ns = namespace(l=[], s='x' * 8000000) %}{% for a in range(999) %}{% set ns.l = ns.l + [ns.s ~ "
      "a] %}"
      "{% endfor %}";
  EXPECT_THAT(render_error(kKeep), HasSubstr("bytes of memory"));
  EXPECT_THAT(render_error("{{ [0] * 999999999 }}"), HasSubstr("more than the template's"));
  EXPECT_THAT(render_error("{{ 'a'.center(999999999999) }}"), HasSubstr("larger than a string may be"));
}

TEST(ChatTemplate, OutputIsLimited) {
  EXPECT_THAT(render_error("{% set s = 'x' * 9000000 %}{% for a in range(9) %}{{ s }}{% endfor %}"),
              HasSubstr("more than"));
}

TEST(ChatTemplate, DepthIsLimitedInTheParser) {
  const auto around = [](char open, char close) {
    return "{{ " + std::string(100'000, open) + "1" + std::string(100'000, close) + " }}";
  };
  EXPECT_THAT(parse_error(around('(', ')')), HasSubstr("nested deeper than 100 levels"));
  EXPECT_THAT(parse_error(around('[', ']')), HasSubstr("nested deeper"));
  EXPECT_THAT(parse_error("{{ " + std::string(100'000, '-') + "1 }}"), HasSubstr("nested deeper"));
  std::string tags;
  std::string sum = "{{ 1";
  std::string path = "{{ a";
  std::string negations = "{{ ";
  for (int i = 0; i < 20'000; ++i) {
    tags += "{% if x %}";
    sum += " + 1";
    path += ".a";
    negations += "not ";
  }
  EXPECT_THAT(parse_error(tags), HasSubstr("nested deeper"));
  EXPECT_THAT(parse_error(sum + " }}"), HasSubstr("operators in a row"));
  EXPECT_THAT(parse_error(path + " }}"), HasSubstr("operators in a row"));
  EXPECT_THAT(parse_error(negations + "x }}"), HasSubstr("nested deeper"));
}

TEST(ChatTemplate, DepthIsLimitedInTheInterpreter) {
  EXPECT_THAT(render_error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
              HasSubstr("nests deeper than"));
  EXPECT_THAT(render_error("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"),
              HasSubstr("nests deeper than"));
  constexpr const char* kNested =
      "{% set ns = namespace(x=[]) %}{% for a in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}";
  EXPECT_THAT(render_error(std::string(kNested) + "{{ ns.x }}"), HasSubstr("nested deeper than 200"));
  EXPECT_THAT(render_error(std::string(kNested) + "{{ ns.x | tojson }}"),
              HasSubstr("nested deeper than 200"));
  EXPECT_THAT(render_error(std::string(kNested) + "{% set y = ns.x %}{{ [y] == y }}"),
              HasSubstr("nested deeper"));
  EXPECT_THAT(render_error("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}"),
              HasSubstr("nested deeper"));
}

TEST(ChatTemplate, ValuesThatHoldThemselvesOftenEndToo) {
  constexpr const char* kBomb =
      "{% set ns = namespace(x=[1], y=[1]) %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}"
      "{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
  EXPECT_THAT(render_error(std::string(kBomb) + "{{ ns.x }}"), HasSubstr("more than"));
  EXPECT_THAT(render_error(std::string(kBomb) + "{{ ns.x | tojson }}"), HasSubstr("more than"));
  EXPECT_THAT(render_error(std::string(kBomb) + "{{ ns.x == ns.y }}"), HasSubstr("took more than"));
}

TEST(ChatTemplate, InputNestingIsLimited) {
  boost::json::value deep = 1;
  for (int i = 0; i < 500; ++i) deep = boost::json::array{deep};
  TemplateInput input;
  input.messages.push_back(deep);
  EXPECT_THAT(render_error("{{ messages }}", input), HasSubstr("nested deeper than 100 levels"));
}

TEST(ChatTemplate, TaintFollowsEveryByte) {
  const TemplateInput input = input_with(R"({"u": "user é", "n": 7, "l": ["a", "b"], "o": {"k": "v"}})");
  EXPECT_EQ(marked("<|{{ u }}|>", input), "[<|]user é[|>]");
  EXPECT_EQ(marked("{{ '<' + u + '>' }}", input), "[<]user é[>]");
  EXPECT_EQ(marked("{{ '<' ~ n ~ '>' ~ (n + 1) }}", input), "[<]7[>]8");
  EXPECT_EQ(marked("{{ ('<' + u + '>')[1:-1] }}", input), "user é");
  EXPECT_EQ(marked("{{ ('<' + u + '>')[::-1] }}", input), "[>]é resu[<]");
  EXPECT_EQ(marked("{{ (' ' + u + ' x ') | trim }}", input), "user é[ x]");
  EXPECT_EQ(marked("{{ ('a,' + u).split(',')[1] }}", input), "user é");
  EXPECT_EQ(marked("{{ u.replace('user', '<s>') }}", input), "[<s>] é");
  EXPECT_EQ(marked("{{ 'a-b'.replace('-', u) }}", input), "[a]user é[b]");
  EXPECT_EQ(marked("{{ l | join('|') }}", input), "a[|]b");
  EXPECT_EQ(marked("{{ u.join(['<', '>']) }}", input), "[<]user é[>]");
  EXPECT_EQ(marked("{{ ('x' + l[0]) | upper }}", input), "[X]A");
  EXPECT_EQ(marked("{{ ('x' + u) | upper }}", input), "XUSER É");
  EXPECT_EQ(marked("{{ o | tojson }}", input), "{\"k\": \"v\"}");
  EXPECT_EQ(marked("{{ {'x': u} | tojson }}", input), "[{\"x\": ]\"user é\"[}]");
  EXPECT_EQ(marked("{{ o }}", input), "{'k': 'v'}");
  EXPECT_EQ(marked("{{ '<%s>' % u }}{{ '<{}>'.format(u) }}", input), "[<]user é[><]user é[>]");
  EXPECT_EQ(marked("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(u) }}", input), "[<]user é[>]");
  EXPECT_EQ(marked("{% set s %}<{{ u }}>{% endset %}{{ s }}", input), "[<]user é[>]");
  EXPECT_EQ(marked("{% filter trim %} <{{ u }}> {% endfilter %}", input), "[<]user é[>]");
  EXPECT_EQ(marked("{% for k, v in o.items() %}{{ k }}={{ v }}{% endfor %}", input), "k[=]v");
  EXPECT_EQ(marked("{{ {'v': '<im>'}[o.k] }}", input), "[<im>]");
  EXPECT_EQ(marked("{{ '5' | int }}{{ (n | string) | int }}", input), "[5]7");
  EXPECT_EQ(marked("{{ u | indent }}{{ u | e }}{{ u | safe }}", input), "user éuser éuser é");
  EXPECT_EQ(marked("{{ l | length }}{{ n > 3 }}", input), "[2True]");
}

TEST(ChatTemplate, TokensOfTheModelAreTrustedAndThoseOfTheRequestAreNot) {
  TemplateInput input = input_with(R"({"eos_token": "</s>"})");
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  EXPECT_EQ(marked("{{ bos_token }}{{ eos_token }}", input), "[<s>]</s>");
}

TEST(ChatTemplate, UndefinedWhereTheModelHasNoSuchToken) {
  EXPECT_EQ(render("{{ bos_token is defined }}{{ tools is none }}{{ documents is none }}")->text,
            "FalseTrueTrue");
}

TEST(ChatTemplate, ReservedNamesOfKwargsAreRefused) {
  const auto rendered = render("x", input_with(R"({"messages": []})"));
  ASSERT_FALSE(rendered);
  EXPECT_EQ(rendered.error().param, "chat_template_kwargs");
  EXPECT_THAT(rendered.error().message,
              StartsWith("chat_template_kwargs.messages: got a value, expected none"));
}

TEST(ChatTemplate, InvalidUtf8IsCarriedAlong) {
  TemplateInput input;
  input.messages.push_back(boost::json::string("a\xFF\xC3"));
  EXPECT_EQ(marked("<{{ messages[0] }}|{{ messages[0][::-1] | length }}>", input), "[<]a\xFF\xC3[|3>]");
}

}  // namespace
}  // namespace deepinfer
