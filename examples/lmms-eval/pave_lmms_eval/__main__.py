"""Print the folder of the tasks: lmms-eval ... --include_path "$(python -m pave_lmms_eval)"."""

from pave_lmms_eval import TASKS

print(TASKS)
