# SPDX-License-Identifier: Apache-2.0
"""The paper's own experiments (arXiv 2504.19874), at the size of one machine: python benchmarks/measure_fidelity.py paper

    distortion   error of MSE and Prod against bits, with the bounds (figure 3), and the inner products' bias and variance
    recall       inner-product search over a model's token embeddings
    needle       a sentence hidden in a long text, asked for at its end
"""
