// The same three routes behind Caddy, which limits. With budgets of tokens, LLM_URL is
// Caddy's second site, and X-User tells it whose tokens they are.
import express from 'express'

const routes = ['chat', 'summary', 'translate']
const llm = process.env.LLM_URL ?? 'https://api.openai.com'
const app = express()

app.post(routes.map((route) => '/api/' + route), async (request, response) => {
	const headers = { 'Content-Type': 'application/json', Authorization: 'Bearer ' + process.env.OPENAI_API_KEY }
	// Without a user there is no field: fetch would send the word "undefined", and all who
	// are nobody would share its tokens.
	const user = request.get('X-User')
	if (user) headers['X-User'] = user
	const answer = await fetch(llm + '/v1/chat/completions', {
		method: 'POST',
		headers,
		body: JSON.stringify({ model: 'gpt-5', max_completion_tokens: 500, messages: [{ role: 'user', content: 'Hello' }] }),
	})
	response.status(answer.status).json(await answer.json())
})

app.listen(Number(process.env.PORT ?? 3000), '127.0.0.1')
