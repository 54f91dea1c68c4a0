"""What a person asked for: frozen values, and their parsing. Reads files, and does nothing else.

options    one invocation: where to, how
targets    NETWORK[:PORTS], names, 0/0: what is to be reached over there
wordfiles  files of words: -s, -X, @file
remotes    where the far side is, as -r and -e say it
"""
