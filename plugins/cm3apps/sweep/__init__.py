"""`cm3 sweep`: train and evaluate every cell of a grid of recipes, and compare the cells case by case.

    sweep.json      what is swept; another sweep is refused in the folder
    protocol.json   what is measured
    runs/           a training for each set of cells that differ only in what training doesn't use, and each seed
    cells/          an evaluation of each cell and seed, as of `cm3 eval`; result.json says that it is finished
    logs/           what each process printed
    results.jsonl   a line per cell and seed: overrides, hash, scores, and the file of their cases
    table.md        means, and differences from the first cell with paired tests
    plot.png        the same as a plot

block       how a recipe's file says what is swept
grid        overrides with several values -> cells
plan        the cells, composed and checked before anything is trained; the folder's claim
protocols   what is measured unless the user names a protocol
running     the processes, several at a time
worker      one of them: a training, and the evaluations of its cells
comparison  paired tests, and Holm's correction
report      table and plot
"""
