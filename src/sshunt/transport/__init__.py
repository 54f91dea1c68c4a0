"""How bytes reach the agent. What every transport gives is a lane: one ordered, reliable byte pipe.

bundle      the agent and all it imports as one deflated blob
loader      stage two: what turns that blob into modules on the far side (shipped as text)
bootstrap   stage one: the shell command that finds a Python and reads the blob
remote      where the far side is, as -r and -e say it
ssh         a lane through the ssh program
process     ssh as a process: pipes, signals, its end
choices     what we choose for ssh where the user did not
unattended  logins that ask nobody
sharing     more channels over a connection that is up
stderr      what ssh says while it lives
diagnosis   what that meant, when there is no lane
"""
