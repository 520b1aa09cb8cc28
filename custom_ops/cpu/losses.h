// Losses that kernels compute with the scores. p is the positive score, n those of N negatives, w
// their weights: 1 / N, or if `adversarial` softmax(temperature n), without gradient. g is the
// activation, sp the softplus.
#pragma once

namespace besskge {

enum class LossKind {
  pointwise,  // positive_factor g(positive_margin - p) + negative_factor sum w g(n + margin)
  ranking,    // sum w g(n - p + margin)
  softmax,    // sp(log sum e^(n / temperature) + offset - (p - margin) / temperature)
};

enum class Activation { relu, softplus, identity };

struct LossRule {
  LossKind kind;
  Activation activation;
  bool adversarial;
  float margin, positive_margin, temperature, positive_factor, negative_factor, offset;
};

}  // namespace besskge
