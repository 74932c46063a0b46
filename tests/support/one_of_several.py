"""A training in one of several processes, with SGD and in double precision, for the comparison with one process.

    torchrun --nproc-per-node 2 one_of_several.py DIRECTORY BATCH_SIZE TABLE_OPTIMIZER SYNC KILLED [--resume]

SYNC is "sync" or "apart". KILLED is the epoch within which the last process kills itself; 0 is none.
"""

import os
import signal
import sys

import torch

from dien_fast.data.sources import Source
from dien_fast.training import loop, optimizers, pipeline
from dien_fast.training.config import RunConfig

ROWS = 800


def sgd(model, rule, lr, weight_decay, table_lr):
    """SGD, which two sums of the same gradients move alike; Adam divides what is nearly 0 by its own size."""
    return torch.optim.SGD(model.parameters(), lr=lr)


def kill_in(epoch):
    """Kill this process, if it is the last, in the middle of an epoch; the others say that they have lost it."""
    # With this, torchrun would end them before they notice.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    backward = loop._Trainer._backward

    def dying(self, *arguments):
        if (
            self.state.epoch + 1 == epoch
            and self._accelerator.process_index == self._accelerator.num_processes - 1
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(self, *arguments)

    loop._Trainer._backward = dying


def main(directory, batch_size, table_optimizer, sync, killed, *resume):
    torch.set_num_threads(1)
    loop.make_optimizer = sgd
    build = pipeline.build_model
    pipeline.build_model = lambda *given, **named: build(*given, **named).double()
    if int(killed):
        kill_in(int(killed))
    config = RunConfig(
        epochs=3,
        lr=0.1,
        batch_size=int(batch_size),
        embedding_size=4,
        attention_hidden=[4],
        attention_dropout=0.0,
        mlp_hidden=[4],
        mlp_dropout=0.0,
        table_optimizer=table_optimizer,
        sync_batchnorm=sync == "sync",
        process_timeout="60s",
    )
    source = Source("synthetic", rows=ROWS)
    pipeline.train_run(source, config, directory, cpu=True, progress=False, resume=bool(resume))


if __name__ == "__main__":
    assert optimizers.make_optimizer is not sgd
    try:
        main(*sys.argv[1:])
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
