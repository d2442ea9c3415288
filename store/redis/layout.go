package redis

import (
	"errors"
	"net"
	"strconv"
	"strings"
)

// span is a range of slots, and the address of their master.
type span struct {
	first, last uint16
	master      string
}

// readSpans reads the reply of a server to CLUSTER SLOTS. The library's reader
// fails if a server leaves its host out.
func readSpans(reply []any, from string) ([]span, error) {
	var spans []span
	for _, entry := range reply {
		fields, _ := entry.([]any)
		if len(fields) < 3 {
			return nil, errReply
		}
		first, ok1 := fields[0].(int64)
		last, ok2 := fields[1].(int64)
		master, ok3 := fields[2].([]any)
		if !ok1 || !ok2 || !ok3 || len(master) < 2 || first < 0 || last < first || last >= slots {
			return nil, errReply
		}
		host, _ := master[0].(string)
		port, ok := master[1].(int64)
		if !ok {
			return nil, errReply
		}
		if host == "?" && len(master) > 3 {
			// It prefers the name of its host, and has none.
			more, _ := master[3].([]any)
			for i := 0; i+1 < len(more); i += 2 {
				if more[i] == "ip" {
					host, _ = more[i+1].(string)
				}
			}
		}
		if address := addressOf(host, strconv.FormatInt(port, 10), from); address != "" {
			spans = append(spans, span{uint16(first), uint16(last), address})
		}
	}
	if len(spans) == 0 {
		return nil, errors.New("it knows of no slots; create the cluster, or have it join one")
	}
	return spans, nil
}

// addressOf is the address of a server that another one, from, names. Without
// a host it is on the same host: a server may not know its own, or not the one
// by which it is to be reached. The address is empty if it is not known.
func addressOf(host, port, from string) string {
	switch host {
	case "?":
		return ""
	case "":
		host, _, _ = net.SplitHostPort(from)
	}
	return net.JoinHostPort(host, port)
}

// parseRedirect splits the reply "MOVED 3999 127.0.0.1:6381" of a server. The
// host of an address of version 6 is in no brackets.
func parseRedirect(reply, from string) (kind, address string) {
	fields := strings.Fields(reply)
	if len(fields) != 3 {
		return "", ""
	}
	colon := strings.LastIndexByte(fields[2], ':')
	if colon < 0 {
		return "", ""
	}
	host := strings.Trim(fields[2][:colon], "[]")
	return fields[0], addressOf(host, fields[2][colon+1:], from)
}
