package redis

import (
	"strconv"
	"strings"
)

// slots is how many slots a Cluster has.
const slots = 16384

// slotOf is the slot of a key: CRC-16/XMODEM of the text between its first brace
// and the next closing one, or of the whole key if there is none (Redis Cluster
// specification, "Hash tags").
func slotOf(key string) uint16 {
	if _, after, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(after, "}"); ok && tag != "" {
			key = tag
		}
	}
	crc := uint16(0)
	for i := range len(key) {
		crc = crc<<8 ^ crcTable[byte(crc>>8)^key[i]]
	}
	return crc % slots
}

var crcTable = func() (table [256]uint16) {
	const polynomial = 0x1021
	for i := range table {
		crc := uint16(i) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ polynomial
			} else {
				crc <<= 1
			}
		}
		table[i] = crc
	}
	return table
}()

// tagOf returns a tag whose slot is in a set that is not empty. It is the same
// for the same set, so that all instances find the same list on a server.
func tagOf(set *[slots]bool) string {
	for i := 0; ; i++ {
		if tag := strconv.Itoa(i); set[slotOf(tag)] {
			return tag
		}
	}
}
