package redis

// Which server's data a charge is in.
//
// A log's mark is in every copy of it, and a replica that becomes the master may
// lack the latest charges. If one of these were refunded there, the units would
// be taken from another client. So each heartbeat brings an identity of the
// server's data, each charge is tagged with it, and the script refunds only what
// was charged in the data that it finds.
//
// A tag must never be newer than the data. An old tag is safe: the charge is not
// refunded. Calls do not ask for the identity, since that costs the server more
// than everything else it does for a call; they are tagged with what the last
// heartbeat over their connections brought. Behind one address, a name or a
// proxy, connections may lead to several servers while one stands in for
// another. So an identity tags calls only over connections that were all made
// after it was heard first; the others are hung up. Sentinels and a Cluster name
// servers by addresses of their own, and the same holds there.
//
// Calls before the very first heartbeat carry no identity, and neither do calls
// to a server that does not tell (INFO is not permitted, or lacks the fields).
// Their charges are refunded wherever their mark is found. What was charged with
// an identity is not refunded on a server that tells none.

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
	stable := over.heard == over.origin.Load()
	n.heard = origin
	n.mu.Unlock()
	n.hangUp(over)
	if stable {
		n.wakeUp()
	}
}
