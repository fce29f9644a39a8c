# SPDX-License-Identifier: Apache-2.0
"""What a compressed KV cache costs a model: how far the next-token distributions move, per byte stored.

    python benchmarks/measure_fidelity.py run      model x text x variant -> build/fidelity/cells/, resumable
    python benchmarks/measure_fidelity.py report   cells -> one JSON, tables, the plot of KL against bytes

    texts      the texts, cut to a number of tokens; where they come from: texts/data/README.md
    models     the model by name or path, and the stresses that are planted into it
    attention  attention of a whole text at once, in which queries read older tokens through a codec
    codec      what a codec is; the two trivial ones
    bits       codes packed without a gap
    ours       the product's codec: the operators `encode` and `decode` on pages
    recipe     the same recipe in plain fp32 torch, with switches that the product does not have (ablations)
               (feedback and dense_balance: two ideas that were not taken)
    paper      the paper's MSE and Prod
    peers/     other caches' formats, one a file
    variants   the table of what is measured, with what is kept in 16 bits
    metrics    numbers from two models' logits
    blocks     error of each attention block's output
    calibration  what calibrated variants take from other text
    sweep      the loop; a cell is one model, text and variant
    report     cells to JSON; tables renders, plot draws, targets compares
    reproduce/ the paper's own experiments
    cli        the command line
"""
