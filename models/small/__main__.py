"""Train the small model from nothing and export it into the package: `python -m models.small`, run by `make model`.

Each step goes on where it stopped. Together they take a day on two CPU cores; `models/README.md` says how on a GPU.
"""

from models.small import export, tower, train

RUN = "build/small_model"

train.main(["--stage", "text", "--run-dir", RUN])
tower.main(["--begin-with", f"{RUN}/text.pt", "--out", f"{RUN}/seeing.pt", "--run-dir", RUN])
train.main(["--stage", "all", "--begin-with", f"{RUN}/seeing.pt", "--freeze-tower", "--rate", "1e-3", "--run-dir", RUN])
export.main(["--checkpoint", f"{RUN}/all.pt", "--out", "service/penstock/demo_model"])
