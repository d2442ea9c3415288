package body

import (
	"slices"
	"strings"
)

// alias reports whether some application may take a name for that of the field,
// for a part of it, or for the whole of which it is a part: then nobody knows
// what the field is. Names that differ only in case are one for .NET. PHP cuts a
// name at a zero byte, and makes a _ of a dot, of a space and of a bracket that is
// not closed. PHP, Rails and Express nest a[b]; Spring nests a.b. Rails and
// Express ignore brackets around a name, and several ignore spaces.
func (f *Field) alias(name string) bool {
	if !mayBeAlias(name, f.readings[0][0]) {
		return false
	}
	for _, x := range readings(name) {
		for _, y := range f.readings {
			n := min(len(x), len(y))
			if n > 0 && slices.EqualFunc(x[:n], y[:n], strings.EqualFold) {
				return true
			}
		}
	}
	return false
}

const (
	spaces   = " \t\r\n\v\f"
	brackets = "[]"
	joints   = spaces + brackets + "._"
)

// mayBeAlias sorts out most names without taking them apart. root is what the
// field begins with.
func mayBeAlias(name, root string) bool {
	name = strings.TrimLeft(name, joints)
	root = strings.TrimLeft(root, joints)
	if name == "" || root == "" {
		return true
	}
	if name[0] < 0x80 && root[0] < 0x80 {
		// Two letters beyond ASCII are equal to one of ASCII but for the case.
		return name[0]|0x20 == root[0]|0x20
	}
	return true
}

// readings returns what applications may take a field's name for: names, each
// within the one before it.
func readings(name string) [][]string {
	name, _, _ = strings.Cut(name, "\x00")
	name = strings.TrimRight(strings.TrimLeft(name, spaces+brackets), spaces)
	if name == "" {
		return nil
	}
	found := [][]string{nested(name, brackets, ". "), nested(name, brackets+".", " ")}
	if !strings.Contains(name, "]") && strings.Contains(name, "[") {
		found = append(found, []string{underscored(name, ". [")})
	}
	return found
}

// nested takes a name apart at some characters. Others become a _ in the first
// part.
func nested(name, at, underscores string) []string {
	parts := strings.FieldsFunc(name, func(c rune) bool { return strings.ContainsRune(at, c) })
	if len(parts) > 0 {
		parts[0] = underscored(parts[0], underscores)
	}
	return parts
}

func underscored(name, characters string) string {
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune(characters, c) {
			return '_'
		}
		return c
	}, name)
}
