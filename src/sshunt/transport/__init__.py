"""How bytes reach the agent. What every transport gives is a channel: one ordered, reliable pipe.

channel            the faces: Transport, Channel, Ending
ssh                channels through the ssh program
local              an agent on this very host, without ssh
greeting           the first words on a channel, and how long to wait for the answer
hello_search       the far side's first message, behind what a login shell prints; pure
process            a channel's program: pipes, signals, its end
stderr             what it says while it lives
endings            waiting for an end although we are being cancelled
bundle             the agent and all it imports as one deflated blob
loader             stage two: what turns that blob into modules on the far side (shipped as text)
bootstrap          stage one: the shell command that finds a Python and reads the blob
ssh_program        where the ssh program is
ssh_choices        what we choose for ssh where the user did not
ssh_ways           by which way ssh logs in next
ssh_unattended     logins that ask nobody
ssh_sharing        more channels over a connection that is up
ssh_known_address  ssh to an address that is known already
ssh_diagnosis      what ssh's sayings meant, when there is no lane
peers              whom a process is really connected to
"""
