"""A GPU that runs out of memory: one sentence and status 2, whichever of OneFlow's threads finds out."""

import subprocess
import sys

import pytest
from small_data import environment

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.gpu_memory import TRAINING_ADVICE, advice_when_out_of_memory

# Throws a C++ exception that nobody catches, as OneFlow's own threads do.
THROW = """
import ctypes, sys, threading
from ssd300_vgg16.gpu_memory import end_when_out_of_memory

throw = ctypes.CDLL("libstdc++.so.6")["_ZSt20__throw_length_errorPKc"]
for message in ("the first", "another"):
    end_when_out_of_memory(message)
thread = threading.Thread(target=throw, args=[sys.argv[1].encode()])
thread.start()
thread.join()
"""


def advice():
    return advice_when_out_of_memory(TRAINING_ADVICE, "train.sh")


def thrown(message):
    command = [sys.executable, "-c", THROW, message]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)


def test_what_is_raised_becomes_a_word_to_the_user():
    with pytest.raises(UserError, match=r"lower --batch-size, .*--accumulate.*--amp"), advice():
        raise RuntimeError("\x1b[1mError\x1b[0m: Out of memory when allocate size : 5")


@pytest.mark.parametrize("error", [RuntimeError("another one"), MemoryError("out of memory"), UserError("a word")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, advice():
        raise error
    assert caught.value is error


def test_what_another_thread_throws_ends_the_process_with_a_word():
    process = thrown("Error: out of memory")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "the first\n"


def test_other_exceptions_of_another_thread_still_abort():
    process = thrown("an illegal memory access was encountered")
    assert process.returncode == -6
    assert "an illegal memory access was encountered" in process.stderr
    assert "the first" not in process.stderr
