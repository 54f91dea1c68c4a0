"""What people and programs see.

report        what has happened, as values, and who hears of it
sentences     what a person reads about each event
printer       hears events, and shows their sentences
snapshot      how a remote is just now, as a value
status        the status line, from figures that change all the time
console       lines on stderr, and on a terminal a status line
figures       rates, sizes and times as people read them
control       what another sshunt command of the same user asks a running one
session_name  how it finds it
neighbours    whom this user's other sessions are connected to
notify        what a service manager is told
"""
