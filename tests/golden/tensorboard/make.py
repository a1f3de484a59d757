"""Makes events.out.tfevents.golden with TensorBoard's own record writer, and scalars.json with its own reader.

    pip install tensorboard==2.21.0 && python make.py
"""

import json
import pathlib

import tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

assert tensorboard.__version__ == "2.21.0", tensorboard.__version__
here = pathlib.Path(__file__).parent
path = here / "events.out.tfevents.golden"
T0 = 1_700_000_000.25


def scalars(**named):
    return Summary(value=[Summary.Value(tag=tag.replace("_", "/"), simple_value=v) for tag, v in named.items()])


events = [Event(wall_time=T0, file_version="brain.Event:2"), Event(wall_time=T0, step=0, summary=scalars(eval_loss=3.25))]
for step in (1, 2, 3):
    summary = scalars(train_loss=3.0 / step, train_lr=1e-4 * step)
    events.append(Event(wall_time=T0 + step, step=step * 100, summary=summary))
with open(path, "wb") as file:
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    writer.flush()

accumulator = EventAccumulator(str(path))
accumulator.Reload()
read = {tag: [[e.step, e.value] for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
(here / "scalars.json").write_text(json.dumps(read, indent=1) + "\n")
