"""The rules for datagrams, as text; what they do is seen in helper/test_udp_flows and e2e."""

from sshunt.capture.nft_datagrams import bound, chains, strays, timeouts, untracked

LISTENERS = {4: ("127.0.0.1", 5000), 6: ("::1", 6000)}


def test_flows_are_remembered_for_longer_than_the_client_knows_them() -> None:
    text = "\n".join(timeouts([4, 6]))
    assert text.count("policy = { unreplied : 150, replied : 330 }") == 2
    assert "l3proto ip;" in text
    assert "l3proto ip6;" in text


def test_a_kernel_without_timeouts_gets_rules_without_them() -> None:
    verdicts = {4: "redirect to :5000"}
    timed = chains(verdicts, [], timed=True)
    assert [line.replace('ct timeout set "datagrams4" ', "") for line in timed] == chains(
        verdicts, [], timed=False
    )


def test_what_is_not_ours_is_looked_at_before_anything_is_redirected() -> None:
    lines = chains({4: "redirect to :5000", 6: "redirect to :6000"}, ["a"], timed=True)
    output = lines[lines.index("\tchain datagrams_output {") :]
    assert output[1] == "\t\ta return"
    assert output[-2] == "\t\tgoto datagrams"
    assert any("@bypass6" in line for line in output)
    assert lines[1] == "\t\tmeta mark & 0x04000000 != 0 return"


def test_what_we_make_is_tracked_on_no_way() -> None:
    lines = untracked()
    assert [line for line in lines if "hook" in line] == [
        f"\t\ttype filter hook {hook} priority -300; policy accept;"
        for hook in ("output", "prerouting")
    ]
    assert sum(line.endswith("notrack") for line in lines) == 2


def test_answers_that_the_kernel_has_forgotten_do_not_leave() -> None:
    assert strays(LISTENERS, any_address=[6])[2:4] == [
        "\t\tip saddr 127.0.0.1 udp sport 5000 ct direction original drop",
        "\t\tmeta nfproto ipv6 udp sport 6000 ct direction original drop",
    ]


def test_what_would_leave_by_an_interface_is_dropped() -> None:
    assert bound(LISTENERS)[1] == "\t\tip6 daddr ::1 udp dport 6000 ct status dnat drop"
