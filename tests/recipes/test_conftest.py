"""What the recipe tests stand on."""

import signal
import subprocess
import sys

from tests.recipes.conftest import heed_ctrl_c


def test_ctrl_c_reaches_the_child_of_a_run_in_the_background():
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as after `nohup make test &`
    try:
        heard = [
            subprocess.check_output([sys.executable, "-c", code], preexec_fn=first, text=True)
            for first in (None, heed_ctrl_c)
        ]
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == ["False\n", "True\n"]
