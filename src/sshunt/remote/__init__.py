"""One far side: its session, its lanes, and what keeps them up.

remote        one far side, from the first login to the goodbye
pool          the session, and its lanes: opened, closed
demand        how many lanes would help; pure
identity      the session's token and its lanes' numbers
keeper        when the link counts as lost, and what is done about it; pure
decisions     what it is told, and what it decides, as values
upkeep        does that: attempts, probes, pauses
attempts      when and how another login is tried; pure
opening       programs that are told when their far end is up
holding       holds programs' connections that come while it is lost
logins        what becomes of a login is said
associations  flows of datagrams, whichever session carries them
queries       those for names that the far side has yet to answer
telemetry     the pacers of both ends are asked
statistics    what they say, as values
resets        what became of a connection, for people
"""
