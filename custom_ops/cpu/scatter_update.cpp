// One pass over the rows that a step touches: sum their gradients, apply a rule, store.
#include "scatter_update.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "isa.h"

#define BESSKGE_KERNELS "scatter_update.kernels.h"
#include "each_isa.h"

namespace besskge {
namespace {

// What a row costs beside its values, in units of one of these.
constexpr int64_t kRowCost = 4;
// Numbers that are worth a thread.
constexpr int64_t kGrain = 32768;

struct Form {
  const char* name;
  Rule rule;
  bool first, second, per_row;  // which state there is, and whether the second is (R, 1)
};

const Form kForms[] = {
    {"sgd", Rule::sgd, false, false, false},
    {"momentum", Rule::momentum, true, false, false},
    {"adagrad", Rule::adagrad, false, true, false},
    {"rowwise_adagrad", Rule::rowwise_adagrad, false, true, true},
    {"adam", Rule::adam, true, true, false},
    {"rowwise_adam", Rule::rowwise_adam, true, true, true},
};

const Form& form_of(c10::string_view name) {
  for (const Form& form : kForms) {
    if (name == form.name) return form;
  }
  TORCH_CHECK_VALUE(false, "scatter_update knows no rule '", name, "'");
}

bool is_float_or_half(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16;
}

// Table and state, which change in place.
void take_tables(const at::Tensor& table, at::TensorList state, const Form& form, Update& u) {
  TORCH_CHECK_VALUE(table.dim() >= 1 && table.is_contiguous(),
                    "scatter_update expects a contiguous table (..., D), got ", table.sizes());
  TORCH_CHECK_TYPE(is_float_or_half(table),
                   "scatter_update expects a table of float32 or bfloat16, got ",
                   table.scalar_type());
  u.width = table.size(-1);
  TORCH_CHECK_VALUE(state.size() == static_cast<size_t>(form.first + form.second),
                    "scatter_update by ", form.name, " expects ", form.first + form.second,
                    " tensors of state, got ", state.size());
  for (size_t i = 0; i < state.size(); ++i) {
    const bool is_second = i + 1 == state.size() && form.second;
    const int64_t width = is_second && form.per_row ? 1 : u.width;
    const at::Tensor& x = state[i];
    TORCH_CHECK_VALUE(x.dim() == table.dim() && x.size(-1) == width && x.is_contiguous() &&
                          x.sizes().slice(0, x.dim() - 1).equals(
                              table.sizes().slice(0, table.dim() - 1)),
                      "scatter_update by ", form.name, " expects contiguous state (..., ", width,
                      ") of a table ", table.sizes(), ", got ", x.sizes());
    TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "scatter_update expects state of float32, got ",
                     x.scalar_type());
    (is_second ? u.second : u.first) = x.data_ptr<float>();
    if (is_second) u.second_width = width;
  }
  if (table.scalar_type() == at::kFloat) {
    u.table = table.data_ptr<float>();
  } else {
    u.half_table = reinterpret_cast<uint16_t*>(table.data_ptr<at::BFloat16>());
  }
}

// The values as rows (K, D) whose entries lie together; what is returned keeps them.
at::Tensor take_values(const at::Tensor& values, Update& u) {
  TORCH_CHECK_VALUE(values.dim() >= 1 && values.size(-1) == u.width,
                    "scatter_update expects values (K, ", u.width, "), got ", values.sizes());
  TORCH_CHECK_TYPE(is_float_or_half(values),
                   "scatter_update expects values of float32 or bfloat16, got ",
                   values.scalar_type());
  const bool as_rows = values.dim() == 2 && (values.stride(1) == 1 || u.width == 1);
  const at::Tensor kept = as_rows ? values : values.contiguous();
  u.value_stride = as_rows ? kept.stride(0) : u.width;
  u.n_value = u.width == 0 ? 0 : kept.numel() / u.width;
  if (kept.scalar_type() == at::kFloat) {
    u.values = kept.data_ptr<float>();
  } else {
    u.half_values = reinterpret_cast<const uint16_t*>(kept.data_ptr<at::BFloat16>());
  }
  return kept;
}

const int64_t* indices(const c10::optional<at::Tensor>& x, const char* name) {
  if (!x.has_value()) return nullptr;
  TORCH_CHECK_TYPE(x->scalar_type() == at::kLong, "scatter_update expects ", name,
                   " of int64, got ", x->scalar_type());
  TORCH_CHECK_VALUE(x->dim() == 1 && x->is_contiguous(), "scatter_update expects contiguous ",
                    name, " with one axis, got ", x->sizes());
  return x->data_ptr<int64_t>();
}

// Nothing outside the tables is written and no row by two threads, whatever the plan says.
void check_plan(const Update& u, int64_t n_table) {
  bool rising = u.n_row == 0 || u.rows == nullptr || (u.rows[0] >= 0 && u.rows[u.n_row - 1] < n_table);
  for (int64_t i = 1; u.rows != nullptr && i < u.n_row; ++i) rising &= u.rows[i] > u.rows[i - 1];
  TORCH_CHECK_VALUE(rising, "scatter_update expects unique_rows that rise, in [0, ", n_table, ")");
  if (u.run_offsets == nullptr) return;
  bool runs = u.n_row == 0 ? u.n_value == 0
                           : u.run_offsets[0] == 0 && u.run_offsets[u.n_row - 1] <= u.n_value;
  for (int64_t i = 1; i < u.n_row; ++i) runs &= u.run_offsets[i] >= u.run_offsets[i - 1];
  TORCH_CHECK_VALUE(runs, "scatter_update expects run_offsets that rise from 0 to at most ",
                    u.n_value, ", the number of values");
  bool inside = true;
  for (int64_t k = 0; k < u.n_value; ++k) inside &= u.order[k] >= 0 && u.order[k] < u.n_value;
  TORCH_CHECK_VALUE(inside, "scatter_update expects an order of places in [0, ", u.n_value, ")");
}

void take_plan(const c10::optional<at::Tensor>& unique_rows,
               const c10::optional<at::Tensor>& run_offsets,
               const c10::optional<at::Tensor>& order, int64_t n_table, Update& u) {
  u.rows = indices(unique_rows, "unique_rows");
  u.n_row = u.rows == nullptr ? n_table : unique_rows->numel();
  u.run_offsets = indices(run_offsets, "run_offsets");
  u.order = indices(order, "order");
  TORCH_CHECK_VALUE(run_offsets.has_value() == order.has_value(),
                    "scatter_update expects both run_offsets and order, or neither");
  if (!order.has_value()) {
    TORCH_CHECK_VALUE(u.n_value == u.n_row || u.width == 0, "scatter_update expects values (",
                      u.n_row, ", ", u.width, "), one for each row, got ", u.n_value);
  } else {
    TORCH_CHECK_VALUE(run_offsets->numel() == u.n_row && order->numel() == u.n_value,
                      "scatter_update expects run_offsets (", u.n_row, ",) and order (", u.n_value,
                      ",), got ", run_offsets->sizes(), " and ", order->sizes());
  }
  // Padding, which is behind the real rows.
  while (u.rows != nullptr && u.n_row > 0 && u.rows[u.n_row - 1] == n_table) --u.n_row;
  if (u.n_row == 0 && run_offsets.has_value() && run_offsets->numel() > 0) u.run_offsets = nullptr;
  check_plan(u, n_table);
}

// The first row from which on the cost of all before is at least `cost`.
int64_t row_at(const Update& u, int64_t cost) {
  int64_t low = 0, high = u.n_row;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const int64_t before = u.run_offsets == nullptr ? middle : u.run_offsets[middle];
    if (before + kRowCost * middle < cost) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Each thread takes neighbouring rows of about the same cost; a row is always one thread's.
void update_in_parallel(const Update& u) {
  const int64_t cost = (u.run_offsets == nullptr ? u.n_row : u.n_value) + kRowCost * u.n_row;
  const int64_t n_worth = cost * u.width / ((1 + kRowCost) * kGrain) + 1;
  const int64_t n_part = std::min<int64_t>(at::get_num_threads(), n_worth);
  at::parallel_for(0, n_part, 1, [&](int64_t first, int64_t last) {
    const std::unique_ptr<float[]> scratch(new float[3 * scratch_row(u.width)]);
    const int64_t begin = row_at(u, cost * first / n_part);
    const int64_t end = last == n_part ? u.n_row : row_at(u, cost * last / n_part);
    BESSKGE_CALL(update_rows, u, begin, end, scratch.get());
  });
}

void scatter_update(const at::Tensor& table, at::TensorList state, const at::Tensor& values,
                    const c10::optional<at::Tensor>& unique_rows,
                    const c10::optional<at::Tensor>& run_offsets,
                    const c10::optional<at::Tensor>& order, c10::string_view rule, double lr,
                    double weight_decay, double beta1, double beta2, double eps, int64_t step,
                    c10::optional<int64_t> seed, int64_t stream) {
  Update u;
  const Form& form = form_of(rule);
  u.rule = form.rule;
  take_tables(table, state, form, u);
  const at::Tensor kept = take_values(values, u);
  take_plan(unique_rows, run_offsets, order, u.width == 0 ? 0 : table.numel() / u.width, u);
  const bool adam = form.first && form.second;
  const double count = static_cast<double>(step);
  u.factors = {static_cast<float>(1.0 - lr * weight_decay),
               static_cast<float>(adam ? lr / (1.0 - std::pow(beta1, count)) : lr),
               static_cast<float>(beta1),
               static_cast<float>(1.0 - beta1),
               static_cast<float>(beta2),
               static_cast<float>(1.0 - beta2),
               static_cast<float>(adam ? 1.0 / (1.0 - std::pow(beta2, count)) : 0.0),
               static_cast<float>(eps)};
  u.stochastic = seed.has_value();
  const uint64_t key = static_cast<uint64_t>(seed.value_or(0));
  u.key[0] = static_cast<uint32_t>(key);
  u.key[1] = static_cast<uint32_t>(key >> 32);
  u.step = static_cast<uint32_t>(step);
  u.stream = static_cast<uint32_t>(stream);
  update_in_parallel(u);
  // Autograd counts versions, so that what was saved before is not used after.
  table.unsafeGetTensorImpl()->bump_version();
  for (const at::Tensor& x : state) x.unsafeGetTensorImpl()->bump_version();
}

}  // namespace
}  // namespace besskge

TORCH_LIBRARY_IMPL(besskge, CPU, m) { m.impl("scatter_update", &besskge::scatter_update); }
