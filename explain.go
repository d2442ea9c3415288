package distributedratelimit

import "net/http"

// adminExplain answers POST explain.
func adminExplain(c *adminCall) (any, error) {
	if _, err := c.running(); err != nil {
		return nil, err
	}
	return nil, adminError(http.StatusNotImplemented, "explain is not built yet")
}
