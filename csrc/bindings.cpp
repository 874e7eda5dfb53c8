// The only file that knows Python. Binds every op of the table in ops.h. Tensors are whatever has a data_ptr(); the
// caller keeps them alive. Every call releases the GIL while it computes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "common/cpu_dispatch.h"
#include "common/cuda_versions.h"
#include "common/row_plan.h"
#include "ops.h"

namespace py = pybind11;
using Ptr = std::uintptr_t;

namespace {

// A field of an argument struct from the Python value of its name. A pointer is None, or the data_ptr() of a tensor.
template <typename T>
void read(PyObject* value, T& field) {
  if constexpr (std::is_pointer_v<T>) {
    static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
    field = nullptr;
    if (value == Py_None) return;
    const py::object address = py::reinterpret_steal<py::object>(PyObject_CallMethodObjArgs(value, data_ptr, nullptr));
    if (!address) throw py::error_already_set();
    field = static_cast<T>(PyLong_AsVoidPtr(address.ptr()));
  } else if constexpr (std::is_same_v<T, bool>) {
    field = PyObject_IsTrue(value) == 1;
  } else if constexpr (std::is_floating_point_v<T>) {
    field = static_cast<T>(PyFloat_AsDouble(value));
  } else {
    field = static_cast<T>(PyLong_AsLongLong(value));
  }
}

// The names of a struct's fields, those of structs inside it in their place, and how to fill one from a dict.
template <typename Args>
class Fields {
 public:
  explicit Fields(const char* op) : op_(op) {
    Args args{};
    add_names(args);
  }

  Args from(const py::dict& values) const {
    Args args{};
    size_t next = 0;
    fill(args, values.ptr(), next);
    if (PyDict_GET_SIZE(values.ptr()) != static_cast<Py_ssize_t>(next)) refuse_unknown(values);
    return args;
  }

 private:
  template <typename T>
  void add_names(T& args) {
    std::string names = T::field_names();
    args.visit_fields([&](auto&... fields) { (add_name(names, fields), ...); });
  }

  template <typename T>
  void add_name(std::string& names, T& field) {  // takes the first of `names`
    const size_t end = names.find(", ");
    const std::string name = names.substr(0, end);
    names = end == std::string::npos ? "" : names.substr(end + 2);
    if constexpr (std::is_class_v<T>) {
      add_names(field);
    } else {
      names_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name.c_str())));
    }
  }

  template <typename T>
  void fill(T& args, PyObject* values, size_t& next) const {
    args.visit_fields([&](auto&... fields) { (fill_one(fields, values, next), ...); });
  }

  template <typename T>
  void fill_one(T& field, PyObject* values, size_t& next) const {
    if constexpr (std::is_class_v<T>) {
      fill(field, values, next);
    } else {
      PyObject* value = PyDict_GetItemWithError(values, names_[next].ptr());
      if (value == nullptr) {
        throw py::type_error(op_ + ": argument " + py::cast<std::string>(names_[next]) + " is missing");
      }
      read(value, field);
      if (PyErr_Occurred()) throw py::error_already_set();
      ++next;
    }
  }

  void refuse_unknown(const py::dict& values) const {
    for (const auto& item : values) {
      const auto same = [&](const py::object& name) { return name.equal(item.first); };
      if (std::none_of(names_.begin(), names_.end(), same)) {
        throw py::type_error(op_ + ": there is no argument " + py::cast<std::string>(py::str(item.first)));
      }
    }
  }

  std::string op_;
  std::vector<py::object> names_;
};

// m.name(cuda, where, fields): `where` is the number of threads on the CPU, or the CUDA stream; `fields` a dict with a
// value for each field of Args.
template <typename Args>
void bind(py::module_& m, const char* name, void (*on_cpu)(const Args&, int), void (*on_cuda)(const Args&, void*)) {
  // Never destroyed: the names would outlive the interpreter otherwise.
  const auto* fields = new Fields<Args>(name);
  m.def(name, [=](bool cuda, Ptr where, const py::dict& values) {
    const Args args = fields->from(values);
    py::gil_scoped_release released;
    if (!cuda) return on_cpu(args, static_cast<int>(where));
    if (on_cuda == nullptr) throw std::runtime_error("the CUDA kernels are not compiled in: " PAW_CUDA_REASON);
    args.check();
    on_cuda(args, reinterpret_cast<void*>(where));
  });
}

// How the CUDA kernels divide a row of n logits (row_plan.h). For tests and for tuning.
py::dict row_plan(int64_t n, int element_bytes, int64_t shared_block, int64_t shared_processor, int forced) {
  py::dict out;
  py::list parts, blocks;
  const int num_parts = paw::token_parts(n);
  for (int i = 0; i < num_parts; ++i) {
    const paw::Slice s = paw::slice_of(n, paw::slice_length(n, num_parts), i);
    parts.append(py::make_tuple(s.begin, s.count));
  }
  const paw::ClusterPlan plan = paw::plan_cluster(n, element_bytes, shared_block, shared_processor, forced);
  for (int i = 0; i < plan.cluster; ++i) {
    const paw::Slice s = paw::slice_of(n, plan.slice, i);
    const int64_t bulk = paw::bulk_bytes(s.count, element_bytes);
    py::list chunks;
    for (int64_t c = 0; c * paw::kChunkBytes < bulk; ++c) chunks.append(paw::chunk_bytes(bulk, c));
    blocks.append(py::make_tuple(s.begin, s.count, chunks));
  }
  out["parts"] = parts;
  out["blocks"] = blocks;
  out["shared_bytes"] = plan.shared_bytes;
  out["reason"] = plan.reason == nullptr ? py::object(py::none()) : py::object(py::str(plan.reason));
  return out;
}

int64_t kept_elements(int64_t n, int element_bytes, int64_t round, int64_t scratch, int64_t shared_block,
                      int64_t shared_processor) {
  return paw::plan_kept(n, element_bytes, round, scratch, shared_block, shared_processor);
}

#ifdef PAW_WITH_CUDA
#define PAW_CUDA_KERNEL(name) paw::name##_cuda
paw::CudaVersions cuda_versions() {
  return paw::cuda_versions();
}
constexpr bool kCudaCompiled = true;
#else
#define PAW_CUDA_KERNEL(name) nullptr
paw::CudaVersions cuda_versions() {
  return {0, 0};
}
constexpr bool kCudaCompiled = false;
#endif

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Fused kernels of paw-fast. Called only through paw_fast.kernels, which checks every argument.";
  m.attr("cuda_compiled") = kCudaCompiled;
  m.attr("cuda_archs") = PAW_CUDA_ARCHS;
  m.attr("cuda_reason") = PAW_CUDA_REASON;
  m.def("cuda_versions", [] {
    const paw::CudaVersions versions = cuda_versions();
    return py::make_tuple(versions.runtime, versions.driver);
  });
  m.def("cpu_isa", &paw::cpu_isa);
  m.def("cpu_isas", &paw::cpu_isas);
  m.def("use_cpu_isa", &paw::use_cpu_isa);
  m.def("row_plan", &row_plan);
  m.def("kept_elements", &kept_elements);

  py::list ops;
#define PAW_BIND(name, Args)                                         \
  bind<paw::Args>(m, #name, paw::name##_cpu, PAW_CUDA_KERNEL(name)); \
  ops.append(#name);
  PAW_OPS(PAW_BIND)
#undef PAW_BIND
  m.attr("ops") = py::tuple(ops);
}
