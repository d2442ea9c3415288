// Package keys reads what tells clients apart: it parses the key of a zone, makes of a
// request the bytes that its log goes by in a store, and shows them to people as text
// that stands for this very key. It reads other values of a request, such as a plan or a
// cost, in the same way.
//
// What it promises:
//
//   - What strangers write into one part of a key never reaches into another: a|bc is not
//     ab|c, and nobody's key reads like another's.
//   - A client has no second key because it spells a value otherwise, or sends it twice.
//   - A key has at most store.MaxClientBytes bytes.
//
// It does not decide what to do with a request whose key is empty, and does not know
// zones, limits or handlers.
package keys
