"""The remote program: what an ssh command starts on the far side.

    main        the entry: reads the client's HELLO and decides who answers it
    rendezvous  where stub and agent meet: the private directory, the sockets' names, the messages
    stub        starts or finds the agent, hands it ssh's pipes, waits for the lane's end
    attach      the agent's half of that, inside its event loop
    server      the agent's life: session, relays, end

Python 3.6 and the standard library only; shipped as one bundle, never installed.
"""
