"""How bytes reach the agent. What every transport gives is a lane: one ordered, reliable byte pipe.

bundle             the agent and all it imports as one deflated blob
loader             stage two: what turns that blob into modules on the far side (shipped as text)
bootstrap          stage one: the shell command that finds a Python and reads the blob
ssh                a lane through the ssh program
ssh_process        ssh as a process: pipes, signals, its end
ssh_choices        what we choose for ssh where the user did not
ssh_unattended     logins that ask nobody
ssh_sharing        more channels over a connection that is up
ssh_known_address  ssh to an address that is known already
ssh_stderr         what ssh says while it lives
ssh_diagnosis      what that meant, when there is no lane
peers              whom a process is really connected to
"""
