// The only file that knows Python. Pointers arrive as integers, from tensors that the caller keeps alive; every call
// gives the GIL away while it computes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/row_plan.h"
#include "cpu_dispatch.h"
#ifdef PAW_WITH_CUDA
#include "cuda_ops.h"
#endif

namespace py = pybind11;
using Ptr = std::uintptr_t;

namespace {

template <typename T>
T* as(Ptr p) {
  return reinterpret_cast<T*>(p);
}

paw::LogitMap logit_map(double temperature, double softcap, int64_t valid_vocab) {
  return paw::LogitMap{static_cast<float>(1.0 / temperature), static_cast<float>(softcap), valid_vocab};
}

template <typename Args>
struct CudaOp {
  using type = void (*)(const Args&, void* stream);
};

// `where`: the number of threads on the CPU, or the CUDA stream.
template <typename Args>
void dispatch(bool cuda, Ptr where, const Args& args, void (*on_cpu)(const Args&, int),
              typename CudaOp<Args>::type on_cuda) {
  py::gil_scoped_release released;
  if (cuda) {
    if (on_cuda == nullptr) throw std::runtime_error("the CUDA kernels are not compiled in: " PAW_CUDA_REASON);
    on_cuda(args, as<void>(where));
  } else {
    on_cpu(args, static_cast<int>(where));
  }
}

// How the CUDA kernels would divide a row of n logits (row_plan.h). For tests and for whoever tunes.
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
#define PAW_CUDA_OP(name) paw::name
constexpr bool kCudaCompiled = true;
#else
#define PAW_CUDA_OP(name) nullptr
constexpr bool kCudaCompiled = false;
#endif

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Fused kernels of paw-fast. Called only through paw_fast.kernels, which checks every argument.";
  m.attr("cuda_compiled") = kCudaCompiled;
  m.attr("cuda_archs") = PAW_CUDA_ARCHS;
  m.attr("cuda_reason") = PAW_CUDA_REASON;
  m.def("cpu_isa", &paw::cpu_isa);
  m.def("cpu_isas", &paw::cpu_isas);
  m.def("use_cpu_isa", &paw::use_cpu_isa);
  m.def("row_plan", &row_plan);
  m.def("kept_elements", &kept_elements);

  m.def("token_logprobs",
        [](bool cuda, Ptr where, int dtype, Ptr logits, int64_t rows, int64_t vocab, int64_t stride, double temperature,
           double softcap, int64_t valid_vocab, Ptr targets, Ptr logprobs, Ptr entropies, Ptr lse) {
          const paw::TokenLogprobsArgs args{as<void>(logits),
                                            static_cast<paw::DType>(dtype),
                                            rows,
                                            vocab,
                                            stride,
                                            as<int64_t>(targets),
                                            logit_map(temperature, softcap, valid_vocab),
                                            as<float>(logprobs),
                                            as<float>(entropies),
                                            as<float>(lse)};
          dispatch(cuda, where, args, paw::token_logprobs_cpu, PAW_CUDA_OP(token_logprobs_cuda));
        });

  m.def("token_logprobs_backward",
        [](bool cuda, Ptr where, int dtype, Ptr logits, Ptr grad, int64_t rows, int64_t vocab, int64_t stride,
           int64_t grad_stride, double temperature, double softcap, int64_t valid_vocab, Ptr targets, Ptr logprobs,
           Ptr entropies, Ptr lse, Ptr grad_logprobs, Ptr grad_entropies, Ptr grad_lse) {
          const paw::TokenLogprobsBackwardArgs args{as<void>(logits),
                                                    as<void>(grad),
                                                    static_cast<paw::DType>(dtype),
                                                    rows,
                                                    vocab,
                                                    stride,
                                                    grad_stride,
                                                    as<int64_t>(targets),
                                                    logit_map(temperature, softcap, valid_vocab),
                                                    as<float>(logprobs),
                                                    as<float>(entropies),
                                                    as<float>(lse),
                                                    as<float>(grad_logprobs),
                                                    as<float>(grad_entropies),
                                                    as<float>(grad_lse)};
          dispatch(cuda, where, args, paw::token_logprobs_backward_cpu, PAW_CUDA_OP(token_logprobs_backward_cuda));
        });

  m.def("paw_loss", [](bool cuda, Ptr where, int dtype, Ptr logits, int64_t rows, int64_t vocab, int64_t stride,
                       double temperature, double softcap, int64_t valid_vocab, double wm_temperature, double clip_low,
                       double clip_high, double dual_clip, double kl_coef, double kl_clamp, double entropy_coef,
                       double tau, double grad_scale, int wm_loss, Ptr targets, Ptr kinds, Ptr weights,
                       Ptr old_logprobs, Ptr ref_logprobs, Ptr advantages, Ptr importance, Ptr losses, Ptr logprobs,
                       Ptr entropies, Ptr kl, Ptr flags) {
    const paw::PawLossSettings settings{static_cast<float>(clip_low),      static_cast<float>(clip_high),
                                        static_cast<float>(dual_clip),     static_cast<float>(kl_coef),
                                        static_cast<float>(kl_clamp),      static_cast<float>(entropy_coef),
                                        static_cast<float>(tau),           static_cast<float>(grad_scale),
                                        static_cast<paw::WmLoss>(wm_loss), static_cast<float>(1.0 / wm_temperature)};
    const paw::PawLossArgs args{as<void>(logits),
                                static_cast<paw::DType>(dtype),
                                rows,
                                vocab,
                                stride,
                                logit_map(temperature, softcap, valid_vocab),
                                settings,
                                as<int64_t>(targets),
                                as<uint8_t>(kinds),
                                as<float>(weights),
                                as<float>(old_logprobs),
                                as<float>(ref_logprobs),
                                as<float>(advantages),
                                as<float>(importance),
                                as<float>(losses),
                                as<float>(logprobs),
                                as<float>(entropies),
                                as<float>(kl),
                                as<uint8_t>(flags)};
    dispatch(cuda, where, args, paw::paw_loss_cpu, PAW_CUDA_OP(paw_loss_cuda));
  });

  m.def("scale_inplace",
        [](bool cuda, Ptr where, int dtype, Ptr matrix, int64_t rows, int64_t columns, int64_t stride, Ptr factor) {
          const paw::ScaleInplaceArgs args{as<void>(matrix), static_cast<paw::DType>(dtype), rows, columns, stride,
                                           as<float>(factor)};
          dispatch(cuda, where, args, paw::scale_inplace_cpu, PAW_CUDA_OP(scale_inplace_cuda));
        });
}
