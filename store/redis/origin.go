package redis

// Which server's data a charge is in.
//
// A log's mark is in every copy of it, and a replica that becomes the master
// may lack the latest charges. If one of those were given back there, the units
// would be taken from somebody else. So each heartbeat brings an identity of
// the server's data, each charge is tagged with it, and the script gives back
// only what was charged in the data it finds.
//
// A tag must never be newer than the data. An old one is safe: the charge is not
// given back. Calls do not ask for the identity, since that costs the server
// more than all that it does for a call; they are tagged with what the last
// heartbeat over their connections brought. Behind one address, a name or a
// proxy, connections may lead to several servers while one stands in for
// another. So an identity tags the calls over those connections only that
// were all made after it was heard first; others are hung up. Sentinels and a
// Cluster name servers by addresses of their own, and there it is the same.
//
// Calls before the first heartbeat of all carry no identity, and neither do those
// of a server that does not tell (INFO is not permitted, or lacks the fields).
// They are given back wherever their mark is found. What was charged with an
// identity is not given back to a server that tells none.

// unheard stands for the identity before the first heartbeat.
const unheard = -1

// found takes in which identity a heartbeat brought over a server's
// connections, 0 for none, and hangs up if they may also lead to another one.
func (n *node) found(over *client, origin int64) {
	n.mu.Lock()
	if over.heard == origin || n.heard == unheard {
		over.heard, n.heard = origin, origin
		over.origin.Store(origin)
		n.origin = origin
		n.mu.Unlock()
		return
	}
	// A server that is another one at each look, as behind a proxy that
	// divides the load, must not be asked without a pause.
	settled := over.heard == over.origin.Load()
	n.heard = origin
	n.mu.Unlock()
	n.hangUp(over)
	if settled {
		n.wakeUp()
	}
}
