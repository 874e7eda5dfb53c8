// PAW_FIELDS(a, b, c) in a struct lists its fields for csrc/bindings.cpp, which fills them by name from Python. A field
// that is itself such a struct (LogitMap) adds its fields to those of the outer struct.
#pragma once

#define PAW_FIELDS(...)                  \
  static const char* field_names() {     \
    return #__VA_ARGS__;                 \
  }                                      \
  template <typename Visitor>            \
  void visit_fields(Visitor&& visitor) { \
    visitor(__VA_ARGS__);                \
  }
