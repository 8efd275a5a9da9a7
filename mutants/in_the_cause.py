# SPDX-License-Identifier: Apache-2.0
"""Mutants made by hand in why a VM is emulated: the causes and the facts they rest on."""

from mutants.hand_made import HandMade

_CAUSE = "tests/unit/test_cause.py::test_"
_EMULATION = "tests/unit/test_emulation_tracker.py::test_"

_EVENTS = "tests/unit/test_emulation_events.py::test_"

IN_THE_CAUSE = (
    HandMade(
        file="probes/judge/cause.py",
        text="        if holds.value is None:\n            return CauseFound(",
        replacement="        if holds.value is Ellipsis:\n            return CauseFound(",
        test=f"{_CAUSE}every_combination",
        breaks="a fact that is unknown is taken for one that does not hold",
    ),
    HandMade(
        file="probes/judge/cause.py",
        text="lambda facts: _both(facts.emulation_allowed, _not(facts.device_in_pod)),",
        replacement="lambda facts: facts.emulation_allowed,",
        test=f"{_CAUSE}cause",
        breaks="useEmulation is blamed although the pod has the device",
    ),
    HandMade(
        file="probes/judge/cause.py",
        text="return second if second.value is None else first",
        replacement="return first",
        test=f"{_CAUSE}every_combination",
        breaks="an unknown fact is taken for one that holds",
    ),
    HandMade(
        file="probes/judge/cause.py",
        text="        if finding.value is False:\n            return finding\n",
        replacement="        if not finding.value:\n            return finding\n",
        test=f"{_CAUSE}every_combination",
        breaks="an unknown fact matters although the cause does not hold without it",
    ),
    HandMade(
        file="probes/judge/cause.py",
        text="before = names[: names.index(_TCG)] if _TCG in names else ()",
        replacement="before = names",
        test=f"{_CAUSE}cause",
        breaks="an accelerator after tcg in the list, which QEMU never tried, is said to refuse",
    ),
    HandMade(
        file="probes/judge/cause.py",
        text="after_s >= start_s + START_ROUNDING_S",
        replacement="after_s >= start_s",
        test=f"{_CAUSE}younger",
        breaks="an accelerator registered in the tick of the start is called younger",
    ),
    HandMade(
        file="probes/judge/cause.py",
        text="    if program.value and not runs_on(program.value, machine):",
        replacement="    if program.value is Ellipsis:",
        test=f"{_CAUSE}foreign_guests",
        breaks="a VMI of the node's architecture hides that QEMU's program is foreign",
    ),
    HandMade(
        file="probes/host/emulation.py",
        text="return mapped and bool(self.capabilities & enough)",
        replacement="return bool(self.capabilities & enough)",
        test="tests/unit/test_emulation.py::test_capability_in_a_user_namespace",
        breaks="root of a user namespace may open files of the node's root",
    ),
    HandMade(
        file="probes/host/pod_device.py",
        text="_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC",
        replacement="_LOOK = os.O_PATH | os.O_CLOEXEC",
        test="tests/unit/test_emulation_facts.py::test_links_are_not_followed",
        breaks="a link in the pod leads the reader to a file of the node",
    ),
    HandMade(
        file="probes/host/device_age.py",
        text="made_unix_s is None or abs(made_unix_s - booted_unix_s) > CLOCK_TOLERANCE_S",
        replacement="made_unix_s is None",
        test="tests/unit/test_device_age.py::test_file_times_that_are_not_trusted",
        breaks="file times count although the clock was set since",
    ),
    HandMade(
        file="probes/host/device_age.py",
        text="        if after_s is None and self._is_built_in():",
        replacement="        if self._is_built_in():",
        test="tests/unit/test_device_age.py::test_what_was_observed_counts_more",
        breaks="a device that was seen to be absent is said to be there since the boot",
    ),
    HandMade(
        file="probes/judge/emulation_tracker.py",
        text="        wanted += self._due(vmms)\n",
        replacement="",
        test=f"{_EMULATION}an_unknown_fact_is_asked_for_again",
        breaks="what could not be read at first stays unknown",
    ),
    HandMade(
        file="probes/judge/emulation_tracker.py",
        text=" or facts.device_in_pod.value is not False",
        replacement=" or True",
        test=f"{_EMULATION}known_facts_are_read_once",
        breaks="every pod without the device is read at each refresh",
    ),
    HandMade(
        file="probes/judge/emulation_tracker.py",
        text="for name, found in known.items() if found.value is not None",
        replacement="for name, found in known.items() if found.value is Ellipsis",
        test=f"{_EMULATION}what_is_known_stays",
        breaks="a device that appears in the pod later hides why the VM was emulated",
    ),
    HandMade(
        file="probes/report/builder.py",
        text="process.cause.cause is Cause.CROSS_ARCHITECTURE",
        replacement="process.cause.cause is Cause.UNKNOWN",
        test="tests/unit/test_builder.py::test_cause_and_fallback_agree",
        breaks="a guest of another architecture is called a fallback",
    ),
    HandMade(
        file="probes/report/emulation_events.py",
        text="return proven or lasted_s >= SETTLE_S",
        replacement="return True",
        test=f"{_EVENTS}courses",
        breaks="a VM that is inferred to emulate for a moment makes an Event",
    ),
    HandMade(
        file="probes/report/emulation_events.py",
        text="    if vmi.fallback and vmi.cause is not None:",
        replacement="    if vmi.cause is not None:",
        test=f"{_EVENTS}courses",
        breaks="a guest that nothing can accelerate makes an Event",
    ),
    HandMade(
        file="probes/report/emulation_events.py",
        text='room = NOTE_MAX_BYTES - len(f"{before}{after}".encode())',
        replacement='room = NOTE_MAX_BYTES - len(f"{before}{after}")',
        test=f"{_EVENTS}a_long_name_of_a_node",
        breaks="the note of an Event is measured in characters, and the server rejects it",
    ),
    HandMade(
        file="probes/vmi/kube/event_api.py",
        text="        case 403 if _is_terminating(status):\n            return _done()\n",
        replacement="",
        test="tests/unit/test_event_api.py::test_answers",
        breaks="a namespace that is being deleted stops the Events of all others",
    ),
    HandMade(
        file="probes/vmi/kube/event_api.py",
        text='"\\0".join((event.uid, event.node, event.reason, *event.identity))',
        replacement='"\\0".join((event.uid, event.node, event.note, *event.identity))',
        test="tests/unit/test_event_api.py::test_the_name_is_always_the_same",
        breaks="an agent that was restarted reports the same event again",
    ),
)
