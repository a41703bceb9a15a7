package policy

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Selector selects by labels: all of its requirements have to hold. The zero Selector selects everything.
type Selector struct {
	Labels      map[string]string
	Expressions []Requirement
}

// Requirement is one of a Selector's matchExpressions.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string
}

// Operator of a Requirement.
type Operator string

// Operators. An absent key matches NotIn.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// matches says whether labels are selected. One whose operator is unknown selects nothing.
func (s *Selector) matches(labels map[string]string) bool {
	for k, want := range s.Labels {
		if has, ok := labels[k]; !ok || has != want {
			return false
		}
	}
	for _, r := range s.Expressions {
		has, ok := labels[r.Key]
		holds := false
		switch r.Operator {
		case In:
			holds = ok && slices.Contains(r.Values, has)
		case NotIn:
			holds = !ok || !slices.Contains(r.Values, has)
		case Exists:
			holds = ok
		case DoesNotExist:
			holds = !ok
		}
		if !holds {
			return false
		}
	}
	return true
}

// String is the selector as `kubectl -l` takes it, "" for everything.
func (s *Selector) String() string {
	var all []string
	for k, v := range s.Labels {
		all = append(all, k+"="+v)
	}
	sort.Strings(all)
	for _, r := range s.Expressions {
		switch r.Operator {
		case Exists:
			all = append(all, r.Key)
		case DoesNotExist:
			all = append(all, "!"+r.Key)
		default:
			all = append(all, fmt.Sprintf("%s %s (%s)", r.Key, strings.ToLower(string(r.Operator)), strings.Join(r.Values, ",")))
		}
	}
	return strings.Join(all, ",")
}
