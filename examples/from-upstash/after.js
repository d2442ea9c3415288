// The same three routes behind Caddy, which limits. With budgets of tokens, LLM_URL is
// Caddy's second site, and X-User tells it whose tokens they are.
import express from 'express'

const app = express()

app.post('/api/:route', async (request, response) => {
	const answer = await fetch(process.env.LLM_URL + '/v1/chat/completions', {
		method: 'POST',
		headers: {
			'Content-Type': 'application/json',
			Authorization: 'Bearer ' + process.env.OPENAI_API_KEY,
			'X-User': request.get('X-User'),
		},
		body: JSON.stringify({ model: 'gpt-5', max_completion_tokens: 500, messages: [{ role: 'user', content: 'Hello' }] }),
	})
	response.status(answer.status).json(await answer.json())
})

app.listen(Number(process.env.PORT), '127.0.0.1')
