package store

import (
	"errors"
	"fmt"
	"time"
)

// Bounds on what operators set by hand.
const (
	// MaxNotices is how many notices a board holds at most, of each class.
	MaxNotices = 1000
	// MaxNoticeBytes bounds the name and the text of a notice together.
	MaxNoticeBytes = 1024
	// MinNotice is how long a notice is on the board at least.
	MinNotice = time.Second
)

// Steered is a store whose counts operators change by hand, and that carries short
// notices to all processes that use it. All methods are safe for concurrent use.
// Those that wait return at the latest after wait, with an *[Error] if the store has
// not answered by then; other errors are about senseless arguments. They say what is
// to be, not what is to change, so whatever is known of a call that failed, it can be
// made again.
//
// None of them enumerates keys: a key is changed by its exact name.
type Steered interface {
	Store
	// Amend changes what is kept of a key. What processes have in hand of it stays
	// theirs: leases, for [MaxLeaseSpan] at most, and remembered refusals, for a
	// second; the process that makes the call gives its own up.
	Amend(wait time.Duration, key Key, amendment Amendment) error
	// Post puts a notice on the board, in the place of one of the same class and name.
	// It fails with [ErrBoardFull] if there are most others of the class.
	Post(wait time.Duration, notice Notice, most int) error
	// Withdraw takes a notice off the board, and reports whether it was there.
	Withdraw(wait time.Duration, class byte, name string) (found bool, err error)
	// WatchBoard calls do with all that is on the board as soon as that is known, and
	// each time that it may have changed, until stop is called; perhaps still once
	// while stop is running. It must neither block nor call the store, and may keep the
	// notices. Other processes hear of a change about a second later. While the store is
	// away, what was on the board is believed to be there until it ends, by the
	// clock of this process. A store that has lost its data has an empty board.
	WatchBoard(do func([]Notice)) (stop func())
}

// Amendment is what is to be of a key. What is zero stays as it is. If there are
// several, they are done in this order.
type Amendment struct {
	// Unban ends any ban.
	Unban bool
	// Empty forgets the units that count, and with them a ban that was not set by
	// hand. Charges made before can no longer be refunded. Up to one limit more is
	// granted, once.
	Empty bool
	// Ban refuses the key for so long from now on, in the place of any other ban: up
	// to [MaxWindow], in whole microseconds. Refunds do not end it. It does nothing to
	// the units that count.
	Ban time.Duration
}

// Validate reports what makes an amendment of a key senseless.
func (a *Amendment) Validate(key *Key) error {
	switch {
	case key.Window < MinWindow || key.Window > MaxWindow || key.Window%time.Microsecond != 0:
		return fmt.Errorf("store: window %v of zone %q is not between %v and %v", key.Window, key.Zone, MinWindow, MaxWindow)
	case len(key.Client) > MaxClientBytes:
		return fmt.Errorf("store: key of %d bytes in zone %q is longer than %d; hash it first", len(key.Client), key.Zone, MaxClientBytes)
	case a.Ban < 0 || a.Ban > MaxWindow || a.Ban%time.Microsecond != 0:
		return fmt.Errorf("store: ban of %v in zone %q is not between 0 and %v", a.Ban, key.Zone, MaxWindow)
	}
	return nil
}

// Notice is a line that all processes which use a store are told.
type Notice struct {
	// Class and Name tell it from others: the class is a letter, the name any bytes.
	Class byte
	Name  string
	// Text is what it says, for whoever posts and reads notices of the class.
	Text string
	// Lasts is how long it is yet to be on the board: when it is posted, [MinNotice]
	// to [MaxWindow] in whole microseconds; when it is read, as of then.
	Lasts time.Duration
}

// Validate reports what makes it senseless to post a notice beside most others of its
// class.
func (n *Notice) Validate(most int) error {
	switch {
	case n.Lasts < MinNotice || n.Lasts > MaxWindow || n.Lasts%time.Microsecond != 0:
		return fmt.Errorf("store: a notice of %v is not between %v and %v", n.Lasts, MinNotice, MaxWindow)
	case len(n.Name)+len(n.Text) > MaxNoticeBytes:
		return fmt.Errorf("store: a notice of %d bytes is longer than %d", len(n.Name)+len(n.Text), MaxNoticeBytes)
	case most < 1 || most > MaxNotices:
		return fmt.Errorf("store: %d notices of a class are not between 1 and %d", most, MaxNotices)
	}
	return nil
}

// ErrBoardFull is the error of a board that holds too many notices of a class.
var ErrBoardFull = errors.New("store: the board is full")
